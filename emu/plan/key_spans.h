// Which keys of one rank of a cp group the queries of another see, as a ring of context parallelism asks at each step.
//
// The keys that a rank holds of a sequence lie in its rows in order of their positions, so a query sees the first few
// of them: those at its own position and before. Along a piece of queries these are either as many for each query (the
// keys all lie before it, or some beyond it) or one more for each (they are the queries' own tokens).
//
// Example, length 8, cp 2: of the keys of rank 0 (positions 0, 1, 6, 7) the queries of rank 1 (2 to 5) see 2 each; of
// the keys of rank 1 the queries of rank 0 at 0 and 1 see none, and those at 6 and 7 all 4.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/plan/serving.h"

namespace shardproof {

/// Queries one after another, and the keys that they see.
struct KeySpan {
  std::int64_t queries = 0;
  std::int64_t first_key = 0;  ///< its row among the holder's
  std::int64_t keys = 0;       ///< that the first query sees; maybe none
  bool causal = false;         ///< each further query sees one more

  double pairs() const {
    const auto rows = static_cast<double>(queries);
    return rows * static_cast<double>(keys) + (causal ? rows * (rows - 1) / 2 : 0);
  }
  bool operator==(const KeySpan&) const = default;
};

/// Of the queries in `pieces`, one span after another, among the keys in `held`. Both are pieces of the same chunks in
/// order of the sequences, no two of one rank overlapping.
std::vector<KeySpan> key_spans(std::span<const Chunk> pieces, std::span<const Chunk> held);

/// Pairs of a query and a key that it sees.
double pairs_between(std::span<const Chunk> pieces, std::span<const Chunk> held);

}  // namespace shardproof
