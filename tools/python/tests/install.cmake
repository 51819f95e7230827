# Installs the package into an environment of its own and runs the README's example and the command there.
file(REMOVE_RECURSE ${ENVIRONMENT})
execute_process(COMMAND ${PYTHON} -m venv ${ENVIRONMENT} COMMAND_ERROR_IS_FATAL ANY)
set(python ${ENVIRONMENT}/bin/python)
execute_process(COMMAND ${python} -m pip install -q ${SOURCE}/tools/python COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${python} ${SOURCE}/tools/python/examples/own_scheme.py OUTPUT_VARIABLE said
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT said MATCHES "mismatch: linear.output on ranks 2 3")
  message(FATAL_ERROR "the example says:\n${said}")
endif()
execute_process(COMMAND ${python} -m shardproof verify ${SOURCE}/plans/tp4_ep4_pp4.json COMMAND_ERROR_IS_FATAL ANY)
