// Which room may include which, as CONTRIBUTING.md draws it (rooms.h), and where a library may be named.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/project/rooms.h"
#include "tests/project/source_tree.h"

namespace shardproof::project {

struct Violation {
  std::string file;
  int line = 0;
  std::string what;
};

/// What one file breaks: an arrow that is not drawn, a library out of its place, or printing and ending the process in
/// a library. Files outside the rooms break nothing.
std::vector<Violation> check_layering(const SourceFile& file, const std::vector<Room>& rooms);

/// Circles of files that include one another, each as "a.h -> b.h -> a.h".
std::vector<std::string> include_cycles(const std::vector<SourceFile>& files);

std::string to_string(const Violation& violation);

}  // namespace shardproof::project
