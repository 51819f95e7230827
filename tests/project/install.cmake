# Installs the build to a fresh prefix, then configures, builds and runs a project that only knows that prefix.

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${result}): ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE ${SCRATCH})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${SCRATCH}/prefix)
run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${SCRATCH}/build -G ${GENERATOR} -DCMAKE_BUILD_TYPE=Debug
    -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_PREFIX_PATH=${SCRATCH}/prefix)
run(${CMAKE_COMMAND} --build ${SCRATCH}/build)
run(${SCRATCH}/build/consumer)

# The benchmarks' command, and what compares two of its results.
if(EXISTS ${SCRATCH}/prefix/bin/shardproof)
  set(plan [[{"name": "small", "model": {"model_type": "mixtral", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 50}, "parallel": {"tp": 1}, "hardware": {"gpus": 1}, "workload": {"batch": 2, "sequence": 8}}]])
  file(WRITE ${SCRATCH}/plan.json "${plan}")
  run(${SCRATCH}/prefix/bin/shardproof ops ${SCRATCH}/plan.json --repetitions 9 --json ${SCRATCH}/ops.json)
  find_program(python python3)
  if(python)
    # A result and itself: nothing is slower.
    run(${python} ${SCRATCH}/prefix/bin/shardproof-bench-compare ${SCRATCH}/ops.json ${SCRATCH}/ops.json
        --resolution 100)
  endif()
endif()
