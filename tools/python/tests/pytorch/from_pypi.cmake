# Runs the tests of shardproof.torch with PyTorch from PyPI, in an environment that is made once.
if(NOT EXISTS ${ENVIRONMENT}/bin/python)
  execute_process(COMMAND ${PYTHON} -m venv ${ENVIRONMENT} COMMAND_ERROR_IS_FATAL ANY)
endif()
set(python ${ENVIRONMENT}/bin/python)
execute_process(COMMAND ${python} -m pip install -q -r ${SOURCE}/requirements-torch.txt COMMAND_ERROR_IS_FATAL ANY)
set(ENV{PYTHONPATH} ${PACKAGE})
set(ENV{SHARDPROOF_SOURCE_DIR} ${ROOT})
execute_process(COMMAND ${python} -m pytest -q -p no:cacheprovider -p shardproof.pytest_plugin ${SOURCE}/tests/pytorch
                COMMAND_ERROR_IS_FATAL ANY)
