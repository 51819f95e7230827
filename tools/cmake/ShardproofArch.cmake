# SHARDPROOF_ARCH -> SHARDPROOF_ARCH_FLAGS.
#
# On x86-64 -march=native is not used: GCC 12 takes newer AMD processors for an older one and prefers 256-bit vectors
# there. Naming the architecture level and the vector width says what is meant.

function(shardproof_arch_flags out)
  set(arch "${SHARDPROOF_ARCH}")
  if(arch STREQUAL "auto")
    if(NOT DEFINED SHARDPROOF_DETECTED_ARCH)
      set(detected "")
      if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT CMAKE_CROSSCOMPILING)
        try_run(ran built ${CMAKE_BINARY_DIR}/arch ${PROJECT_SOURCE_DIR}/tools/cmake/detect_arch.cpp
                RUN_OUTPUT_VARIABLE detected)
        if(NOT built OR NOT ran EQUAL 0)
          set(detected "")
        endif()
        string(STRIP "${detected}" detected)
      endif()
      set(SHARDPROOF_DETECTED_ARCH "${detected}" CACHE INTERNAL "Architecture level of this machine")
      message(STATUS "Instruction set of this machine: ${detected}")
    endif()
    set(arch "${SHARDPROOF_DETECTED_ARCH}")
  endif()
  set(flags "")
  if(arch)
    list(APPEND flags -march=${arch})
  endif()
  if(arch STREQUAL "x86-64-v4")
    list(APPEND flags -mprefer-vector-width=512)
  endif()
  # With AVX-512, GCC 12 stores the constant {1, 1, 0, 0} of 8-byte elements (or any 32 bytes of two halves, the second
  # zero) as {1, 1, 1, 1} where it copies it to memory piece by piece: pieces of 16 bytes come out right.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND
     CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12)
    list(APPEND flags -mmove-max=128 -mstore-max=128)
  endif()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

shardproof_arch_flags(SHARDPROOF_ARCH_FLAGS)
