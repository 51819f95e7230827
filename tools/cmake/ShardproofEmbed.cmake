# shardproof_embed(<target> <file> <symbol>): puts a file's text into <target>. Any source of the target may read it as
#
#   namespace shardproof { extern const std::string_view <symbol>; }
#
# The text is constant-initialised, so it may be read before main, and is made anew when the file changes.
#
# Run as a script (cmake -DINPUT=... -DOUTPUT=... -DSYMBOL=... -P), this file writes the source.

if(CMAKE_SCRIPT_MODE_FILE)
  file(READ ${INPUT} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
  string(REGEX REPLACE "(('[^']*',){20})" "\\1\n" bytes "${bytes}")
  file(WRITE ${OUTPUT} "#include <string_view>

namespace shardproof {
extern const std::string_view ${SYMBOL};
namespace {
constexpr char kText[] = {
${bytes}'\\0'};
}  // namespace
constinit const std::string_view ${SYMBOL}(kText, sizeof(kText) - 1);
}  // namespace shardproof
")
  return()
endif()

function(shardproof_embed target file symbol)
  cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE)
  set(script ${PROJECT_SOURCE_DIR}/tools/cmake/ShardproofEmbed.cmake)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/embedded/${symbol}.cpp)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${file} -DOUTPUT=${output} -DSYMBOL=${symbol} -P ${script}
    DEPENDS ${file} ${script} COMMENT "Embedding ${file} as ${symbol}" VERBATIM)
  target_sources(${target} PRIVATE ${output})
  # By itself: each names its text alike.
  set_source_files_properties(${output} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
