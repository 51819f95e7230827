// Which real algorithm's order a reduction or a movement follows. See ALGORITHMS.md for steps and bytes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace shardproof {

enum class Algorithm : std::uint8_t {
  rank_order,          ///< each chunk is summed by its owner in rank order: in[0] + in[1] + ... (direct exchange)
  ring,                ///< chunk c starts at rank c + 1 and travels the ring to rank c
  tree,                ///< double binary tree as NCCL lays it, half of the data on each
  recursive_doubling,  ///< pairs, then pairs of pairs; ranks beyond a power of two are folded in first
  hierarchical         ///< ring inside each node, ring across the nodes
};

inline constexpr std::array kAlgorithms{Algorithm::rank_order, Algorithm::ring, Algorithm::tree,
                                        Algorithm::recursive_doubling, Algorithm::hierarchical};

/// "rank_order", "ring", "tree", "recursive_doubling", "hierarchical".
std::string_view to_string(Algorithm algorithm);
std::optional<Algorithm> parse_algorithm(std::string_view name);

}  // namespace shardproof
