# Runs PROGRAM with ARGUMENTS and fails unless it exits with CODE and its output holds TEXT.
separate_arguments(arguments UNIX_COMMAND "${ARGUMENTS}")
execute_process(COMMAND ${PROGRAM} ${arguments} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors
                WORKING_DIRECTORY ${SOURCE_DIR})
if(NOT result STREQUAL "${CODE}")
  message(FATAL_ERROR "exit ${result}, expected ${CODE}\n${output}${errors}")
endif()
string(FIND "${output}${errors}" "${TEXT}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "no \"${TEXT}\" in\n${output}${errors}")
endif()
