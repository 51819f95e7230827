// The files of the repository, as the tests of the project itself read them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardproof::project {

struct SourceFile {
  std::string path;  // from the repository root, with forward slashes
  std::string text;
};

/// Every file below the root, sorted by path; build folders and hidden folders other than .ci are left out.
std::vector<SourceFile> read_tree(const std::string& root);

/// The bytes of one file; empty when there is none.
std::string read_file(const std::string& path);

/// The same text with comments blanked, line by line; string and character literals too if asked for.
enum class Blank { comments, comments_and_literals };
std::string blanked(std::string_view text, Blank what);

std::vector<std::string> lines_of(std::string_view text);

bool is_cpp(std::string_view path);

}  // namespace shardproof::project
