// Sliding windows in a config.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/input/object_reader.h"
#include "emu/model/config.h"
#include "emu/model/families/family.h"

namespace shardproof::family_config {

/// Reads the window into `attention`, and returns which layers have it. Without a window, none has.
std::vector<bool> read_windows(ObjectReader& reader, const Family& family, std::int64_t layers,
                               AttentionSpec& attention);

}  // namespace shardproof::family_config
