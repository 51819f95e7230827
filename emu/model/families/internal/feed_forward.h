// Experts, shared experts and dense layers in a config.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/input/object_reader.h"
#include "emu/model/config.h"
#include "emu/model/families/family.h"

namespace shardproof::family_config {

/// Reads the widths and the router of layers with experts into `experts`, and returns what dense layers have. Needs
/// num_experts and top_k.
FeedForwardSpec read_feed_forward(ObjectReader& reader, const Family& family, FeedForwardSpec& experts,
                                  std::vector<Problem>& problems);

/// Which of the layers are dense.
std::vector<bool> read_dense_layers(ObjectReader& reader, const Family& family, std::int64_t layers,
                                    std::vector<Problem>& problems);

}  // namespace shardproof::family_config
