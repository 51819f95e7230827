# In an environment of its own: Holistic Trace Analysis from PyPI, held to the clock's sums.
# cmake -DPROGRAM=... -DPLAN=... -DSCRIPT=... -DENVIRONMENT=... -P hta.cmake
find_program(PYTHON python3 REQUIRED)
foreach(command IN ITEMS
    "${PYTHON};-m;venv;${ENVIRONMENT}"
    "${ENVIRONMENT}/bin/python;-m;pip;install;--quiet;--disable-pip-version-check;HolisticTraceAnalysis==0.5.0"
    "${ENVIRONMENT}/bin/python;${SCRIPT};${PROGRAM};${PLAN};${ENVIRONMENT}/traces")
  execute_process(COMMAND ${command} RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${command}: ${failed}")
  endif()
endforeach()
