// What a slot of a replica's cache held before: requests that are done leave their tokens behind in blocks that others
// get (BlockTables), were these not poisoned.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/token_map.h"

namespace shardproof {

/// A token of a sequence; of nobody (-1) where nothing was ever written.
struct SlotToken {
  std::int64_t sequence = -1;
  std::int64_t token = -1;
};

/// What the slots of a chunk's tokens hold before the pass writes them: of the `index`-th chunk that the replica runs
/// in the microbatch, on a rank that keeps every token (dcp 1), whose cache has so many blocks.
std::vector<SlotToken> left_behind(const TokenMap& tokens, const Serving& serving, std::int64_t blocks, int dp,
                                   std::int64_t microbatch, std::size_t index);

}  // namespace shardproof
