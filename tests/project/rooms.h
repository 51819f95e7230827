// The rooms of the tree and the arrows between them, read from the picture that CONTRIBUTING.md gives of them.
//
// The picture is the table under "| room | holds | may include |". A room is a folder or, for arrows that are its own,
// a file; its rows lie in order: arrows lead upwards only. A path in backquotes is a folder with all that lies in it,
// or a file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardproof::project {

struct Room {
  std::string path;                      // "emu/run/", from the repository root
  std::vector<std::string> may_include;  // beside what lies in it; of a file, beside what its folder may
};

/// The rooms in the order of the table. Throws std::runtime_error, naming the line, when there is no table or a row is
/// not of that form.
std::vector<Room> rooms_in(std::string_view document);

/// What no drawing may have: an arrow that leads to no room above its own, a room that stands twice.
std::vector<std::string> wrong_arrows(const std::vector<Room>& rooms);

}  // namespace shardproof::project
