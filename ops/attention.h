// Causal grouped-query attention over whole sequences that lie one after another:
//   s_j = (q . k_j) / sqrt(head_dim) for j up to the token itself,  p_j = exp(s_j - max s),  out = sum p_j v_j / sum
//   p_j
// Query head h reads key and value head h / (heads / kv_heads).
//
// In `exact` the scores are rounded to kActivationStep and every p_j to kExpStep, with the true maximum of the row, so
// both sums are exact. In the other formats a running maximum over tiles of keys replaces it, so that memory stays
// O(tokens). Either way an output depends on the rows of its own sequence alone, not on what else is in the batch, on
// the other heads or on the number of threads.
#pragma once

#include <cstdint>
#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Keys that a running maximum is taken over before what there is is scaled to it.
inline constexpr Index kAttentionTile = 256;

/// q, out [tokens, heads * head_dim], k, v [tokens, kv_heads * head_dim]; heads is a multiple of kv_heads.
/// offsets has one entry more than there are sequences: sequence s is the rows offsets[s] .. offsets[s+1], which may be
/// none; the last entry is tokens. An empty `offsets` means no sequence. out must not overlap the inputs.
template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, Index head_dim, Format format, MatrixView<T> out);

/// (Query, key) pairs of the causal mask: sum over sequences of s (s + 1) / 2.
constexpr double causal_pairs(std::span<const std::int64_t> offsets) {
  double pairs = 0;
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    const auto length = static_cast<double>(offsets[s] - offsets[s - 1]);
    pairs += length * (length + 1) / 2;
  }
  return pairs;
}

/// 4 head_dim flops a pair and head (q.k and p.v); q, k, v and out once.
/// Of `pairs` of a query and a key that it sees, `tokens` rows of q, k and v.
constexpr Cost attention_cost(double pairs, Index tokens, Index heads, Index kv_heads, Index head_dim,
                              int bytes_per_element) {
  const auto width = static_cast<double>(heads * head_dim), kv_width = static_cast<double>(kv_heads * head_dim);
  return {4 * pairs * width, 2 * static_cast<double>(tokens) * (width + kv_width) * bytes_per_element};
}

constexpr Cost attention_cost(std::span<const std::int64_t> offsets, Index heads, Index kv_heads, Index head_dim,
                              int bytes_per_element) {
  const Index tokens = offsets.empty() ? 0 : offsets.back() - offsets.front();
  return attention_cost(causal_pairs(offsets), tokens, heads, kv_heads, head_dim, bytes_per_element);
}

}  // namespace shardproof::ops
