// Which files a dump is: one of every rank, or one for all.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "emu/input/problem.h"

namespace shardproof {

/// In place of a rank: of the file for all.
inline constexpr int kWholeBatch = -1;

/// By rank. `path` is the file for all, or a folder with it or with rank_0.safetensors to one of `world` ranks. None
/// where there are problems, which are added.
std::map<int, std::filesystem::path> find_dump_files(const std::string& path, int world,
                                                     std::vector<Problem>& problems);

}  // namespace shardproof
