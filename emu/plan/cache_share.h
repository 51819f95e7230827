// Who of a dcp group keeps which cached tokens of a sequence: `interleave` tokens in a row on each rank in turn
// (vLLM's cp_kv_cache_interleave_size), so that ranks differ by no more than that, whatever the length.
//
// A rank keeps its tokens one after another in the blocks of the sequence's table, which is the same on all ranks: a
// block has room for kv_block_size tokens on each of them.
//
// Example, dcp 2, interleave 2: rank 0 keeps tokens 0, 1, 4, 5, 8, ... as its 0th, 1st, 2nd, ...
#pragma once

#include <algorithm>
#include <cstdint>

#include "emu/plan/mesh.h"

namespace shardproof {

struct CacheShare {
  int ranks = 1;
  std::int64_t interleave = 1;
  int rank = 0;

  /// The rank that keeps the token.
  int owner_of(std::int64_t token) const { return static_cast<int>(token / interleave % ranks); }
  bool owns(std::int64_t token) const { return owner_of(token) == rank; }
  /// Of the tokens before this one, how many its owner keeps: its place among them.
  std::int64_t place_of(std::int64_t token) const {
    return token / (interleave * ranks) * interleave + token % interleave;
  }
  /// The inverse of place_of(), for the rank's own tokens.
  std::int64_t token_at(std::int64_t place) const {
    return (place / interleave * ranks + rank) * interleave + place % interleave;
  }
  /// Of the first `tokens` tokens, how many the rank keeps.
  std::int64_t count_of(std::int64_t tokens) const {
    const std::int64_t round = interleave * ranks;
    return tokens / round * interleave + std::clamp<std::int64_t>(tokens % round - rank * interleave, 0, interleave);
  }
  /// Of queries at each of the first `tokens` positions, pairs with a key that the rank keeps, at theirs or before.
  double pairs_of(std::int64_t tokens) const {
    const std::int64_t round = interleave * ranks, rounds = tokens / round;
    // In a round of its own the rank keeps those after `before` others; whoever comes after sees them all.
    const std::int64_t before = rank * interleave;
    const auto within = [&](std::int64_t count) {
      const auto own = static_cast<double>(std::clamp<std::int64_t>(count - before, 0, interleave));
      const auto after = static_cast<double>(std::max<std::int64_t>(count - before - interleave, 0));
      return own * (own + 1) / 2 + after * static_cast<double>(interleave);
    };
    const auto full = static_cast<double>(rounds), each = static_cast<double>(interleave);
    const auto left = static_cast<double>(tokens % round);
    return each * static_cast<double>(round) * full * (full - 1) / 2 + full * within(round) + left * full * each +
           within(tokens % round);
  }
  bool operator==(const CacheShare&) const = default;
};

inline CacheShare cache_share(const Parallel& parallel, const Coordinates& at) {
  return {.ranks = parallel.dcp, .interleave = parallel.dcp_interleave, .rank = at.dcp};
}

}  // namespace shardproof
