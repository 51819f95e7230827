#include "emu/judge/dump_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace shardproof {
namespace {

/// The number in "rank_3.safetensors"; none for any other name.
std::optional<int> rank_of(const std::filesystem::path& file) {
  const std::string stem = file.stem().string();
  std::string_view rest = stem;
  if (!rest.starts_with("rank")) return std::nullopt;
  rest.remove_prefix(4);
  if (rest.starts_with('_') || rest.starts_with('-') || rest.starts_with('.')) rest.remove_prefix(1);
  int rank = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), rank);
  if (error != std::errc() || end != rest.data() + rest.size() || rank < 0) return std::nullopt;
  return rank;
}

/// Every rank's file has to be there, and no other.
void check_ranks(const std::string& path, int world, const std::map<int, std::filesystem::path>& found,
                 const std::vector<std::string>& others, std::vector<Problem>& problems) {
  const auto problem = [&](std::string message) { problems.push_back({path, std::move(message)}); };
  const std::string needed =
      world == 1 ? "one file for all, or rank_0.safetensors"
                 : fmt::format("one file for all, or rank_0.safetensors to rank_{}.safetensors", world - 1);
  if (found.empty()) {
    return problem(fmt::format("{} .safetensors files, none of a rank; {} is needed", others.size(), needed));
  }
  for (int rank = 0; rank < world; ++rank) {
    if (found.contains(rank)) continue;
    problem(fmt::format("rank_{}.safetensors is missing: the plan has {} ranks; {} is needed", rank, world, needed));
  }
  if (found.rbegin()->first >= world) {
    problem(fmt::format("{} is of no rank: the plan has {}", found.rbegin()->second.filename().string(), world));
  }
  for (const std::string& other : others) {
    problem(fmt::format("{} stands beside files of ranks, and is of none; {} is needed", other, needed));
  }
}

}  // namespace

std::map<int, std::filesystem::path> find_dump_files(const std::string& path, int world,
                                                     std::vector<Problem>& problems) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return {{kWholeBatch, path}};
  if (!std::filesystem::is_directory(path, error)) {
    problems.push_back({path, "no such file or folder; a dump is a folder of .safetensors files, or one of them"});
    return {};
  }
  const std::size_t before = problems.size();
  std::map<int, std::filesystem::path> found;
  std::vector<std::string> others;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::optional<int> rank = rank_of(entry.path());
    if (!rank) others.push_back(entry.path().filename().string());
    if (rank && !found.emplace(*rank, entry.path()).second) {
      problems.push_back({path, fmt::format("two files for rank {}: {} and {}", *rank, found[*rank].filename().string(),
                                            entry.path().filename().string())});
    }
  }
  std::ranges::sort(others);
  if (found.empty() && others.size() == 1) return {{kWholeBatch, std::filesystem::path(path) / others.front()}};
  check_ranks(path, world, found, others, problems);
  if (problems.size() > before) found.clear();
  return found;
}

}  // namespace shardproof
