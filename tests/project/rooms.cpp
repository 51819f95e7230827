#include "tests/project/rooms.h"

#include <algorithm>
#include <regex>
#include <set>
#include <stdexcept>

#include "tests/project/source_tree.h"

namespace shardproof::project {
namespace {

constexpr std::string_view kHeading = "| room | holds | may include |";

/// The paths of "`ops/`, `emu/model/config.h`"; throws for anything else between them.
std::vector<std::string> paths_in(const std::string& cell, const std::string& line) {
  static const std::regex kPaths(R"(\s*(`[\w./]+`(,\s*`[\w./]+`)*)?\s*)");
  static const std::regex kPath(R"(`([\w./]+)`)");
  if (!std::regex_match(cell, kPaths)) throw std::runtime_error("paths in backquotes are needed: " + line);
  std::vector<std::string> paths;
  for (std::sregex_iterator match(cell.begin(), cell.end(), kPath), end; match != end; ++match) {
    paths.push_back((*match)[1].str());
  }
  return paths;
}

Room room_of(const std::string& line) {
  static const std::regex kRow(R"(\|([^|]*)\|[^|]*[^|\s][^|]*\|([^|]*)\|)");
  std::smatch cells;
  if (!std::regex_match(line, cells, kRow)) throw std::runtime_error("not a room, what it holds, its arrows: " + line);
  const std::vector<std::string> name = paths_in(cells[1].str(), line);
  if (name.size() != 1) throw std::runtime_error("one room a row is needed: " + line);
  return {name.front(), paths_in(cells[2].str(), line)};
}

}  // namespace

std::vector<Room> rooms_in(std::string_view document) {
  const std::vector<std::string> lines = lines_of(document);
  const auto heading = std::ranges::find(lines, kHeading);
  if (lines.end() - heading < 2) throw std::runtime_error("no table with the heading " + std::string(kHeading));
  std::vector<Room> rooms;
  for (auto line = heading + 2; line != lines.end() && line->starts_with('|'); ++line) rooms.push_back(room_of(*line));
  if (rooms.empty()) throw std::runtime_error("no row under the heading " + std::string(kHeading));
  return rooms;
}

std::vector<std::string> wrong_arrows(const std::vector<Room>& rooms) {
  std::vector<std::string> wrong;
  std::set<std::string> above;
  for (const Room& room : rooms) {
    for (const std::string& to : room.may_include) {
      const bool leads_up = std::ranges::any_of(
          above, [&](const std::string& upper) { return upper.starts_with(to) || to.starts_with(upper); });
      if (!leads_up) wrong.push_back(room.path + " -> " + to + " leads to no room above it");
    }
    if (!above.insert(room.path).second) wrong.push_back(room.path + " stands twice");
  }
  return wrong;
}

}  // namespace shardproof::project
