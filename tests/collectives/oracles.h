// Oracles for the orders: the real algorithms, with messages in flight, on the buffers of all ranks, step by step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <span>
#include <vector>

#include "collectives/options.h"

namespace shardproof::testing {

/// A coarse format: 8 significant bits, as bfloat16 has them.
extern const Rounding kCoarse;

struct Numbers {
  bool wire = false;        ///< round to the coarse format at rest and on the way
  bool accumulate = false;  ///< and after each addition
  float at_rest(float value) const;
  float add(float a, float b) const;
  ReduceOptions options(Algorithm algorithm, int gpus_per_node = 8) const;
};

inline std::ostream& operator<<(std::ostream& out, const Numbers& numbers) {
  return out << "wire " << numbers.wire << ", accumulate " << numbers.accumulate;
}

using Buffers = std::vector<std::vector<float>>;  ///< [rank][element]
using Members = std::vector<std::size_t>;         ///< group ranks

struct Range {
  std::size_t begin;
  std::size_t end;
};
std::vector<float> slice(const std::vector<float>& values, Range range);

/// All-reduce: every buffer becomes the result. Buffers are at rest, hence rounded, already.
void oracle_rank_order(const Numbers& numbers, Buffers& buffers);
void oracle_ring(const Numbers& numbers, Buffers& buffers);
void oracle_tree(const Numbers& numbers, Buffers& buffers);
void oracle_recursive_doubling(const Numbers& numbers, Buffers& buffers);
/// Nodes of equal size.
void oracle_hierarchical(const Numbers& numbers, Buffers& buffers, std::size_t per_node);
/// Nodes of any size: down a chain in each, around a ring of their first members, and back along the chain.
void oracle_hierarchical_uneven(const Numbers& numbers, Buffers& buffers, const std::vector<Members>& nodes);

/// Reduce-scatter around the ring, part j being [bounds[j], bounds[j + 1]): rank j's buffer ends with its part summed.
void oracle_ring_scatter(const Numbers& numbers, Buffers& buffers, const std::vector<std::size_t>& bounds);
/// Reduce down a chain that begins after the root and ends at it.
void oracle_chain(const Numbers& numbers, Buffers& buffers, std::size_t root);

/// Values of very different size, so that any other order gives other bits.
Buffers rough_inputs(int ranks, std::size_t count, std::uint64_t seed);
/// The buffers in the format at rest.
Buffers at_rest(const Numbers& numbers, Buffers buffers);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace shardproof::testing
