// Causal grouped-query attention over whole sequences that lie one after another:
//   s_j = (q . k_j) / sqrt(head_dim) for j up to the token itself,  p_j = exp(s_j - max s),  out = sum p_j v_j / sum
//   p_j
// Query head h reads key and value head h / (heads / kv_heads).
//
// In `exact` the scores are rounded to kActivationStep and every p_j to kExpStep, with the true maximum of the row, so
// both sums are exact. In the other formats a running maximum over tiles of keys replaces it, so that memory stays
// O(tokens). Either way an output depends on the rows of its own sequence alone, not on what else is in the batch, on
// the other heads or on the number of threads; nor on how many tokens of its sequence are there as queries too, nor on
// where the keys lie.
//
// Where some tokens of a sequence are past, only their keys and values are there. These lie in rows one after another,
// or in the blocks of a paged cache (Kwon et al. 2023, arXiv 2309.06180), which a table lists.
#pragma once

#include <cstdint>
#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Keys that a running maximum is taken over before what there is is scaled to it.
inline constexpr Index kAttentionTile = 256;

/// What varies between models. Sizes that are 0 are head_dim's.
template <class T>
struct AttentionOptions {
  Index head_dim = 0;             ///< of queries and keys
  Index value_dim = 0;            ///< of values and outputs
  double scale = 0;               ///< times q . k; 0 is 1 / sqrt(head_dim)
  Index window = 0;               ///< keys that a token sees, itself included; 0 is all
  std::span<const T> sinks = {};  ///< a logit each head that takes part in the softmax and has no value; or none
};

/// Some tokens of a sequence: `rows` rows of q and out, after those of the spans before.
struct AttentionSpan {
  Index rows = 0;
  Index past = 0;       ///< tokens of the sequence before them
  Index first_key = 0;  ///< the row of k and v that is the sequence's first token's, where block_size is 0
  /// Else token j's key is row blocks[j / block_size] * block_size + j % block_size of k; at least as many blocks as
  /// hold past + rows tokens.
  std::span<const std::int32_t> blocks = {};
};

/// q, out as below, of all spans; k and v of as many rows as they need. out must not overlap the inputs. Throws
/// ShapeError where a span reaches outside.
template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const AttentionSpan> spans, Index block_size, const AttentionOptions<T>& options,
               Format format, MatrixView<T> out);

/// As below; out [tokens, heads * value_dim], v [tokens, kv_heads * value_dim]. A score outside the window is not
/// computed. A sink is one more score: the first of the running maximum.
template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, const AttentionOptions<T>& options, Format format,
               MatrixView<T> out);

/// q, out [tokens, heads * head_dim], k, v [tokens, kv_heads * head_dim]; heads is a multiple of kv_heads.
/// offsets has one entry more than there are sequences: sequence s is the rows offsets[s] .. offsets[s+1], which may be
/// none; the last entry is tokens. An empty `offsets` means no sequence. out must not overlap the inputs.
template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, Index head_dim, Format format, MatrixView<T> out);

/// (Query, key) pairs of the causal mask: sum over sequences of s (s + 1) / 2, less what lies before a window.
constexpr double causal_pairs(std::span<const std::int64_t> offsets, Index window = 0) {
  double pairs = 0;
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    const auto length = static_cast<double>(offsets[s] - offsets[s - 1]);
    pairs += length * (length + 1) / 2;
    const double beyond = window > 0 ? length - static_cast<double>(window) : 0;
    if (beyond > 0) pairs -= beyond * (beyond + 1) / 2;
  }
  return pairs;
}

/// 2 (head_dim + value_dim) flops a pair and head (q.k and p.v); q, k, v and out once.
/// Of `pairs` of a query and a key that it sees, `tokens` rows of q, k and v.
constexpr Cost attention_cost(double pairs, Index tokens, Index heads, Index kv_heads, Index head_dim, Index value_dim,
                              int bytes_per_element) {
  const auto width = static_cast<double>(head_dim + value_dim);
  const double rows = static_cast<double>(tokens) * static_cast<double>(heads + kv_heads);
  return {2 * pairs * static_cast<double>(heads) * width, rows * width * bytes_per_element};
}

constexpr Cost attention_cost(double pairs, Index tokens, Index heads, Index kv_heads, Index head_dim,
                              int bytes_per_element) {
  return attention_cost(pairs, tokens, heads, kv_heads, head_dim, head_dim, bytes_per_element);
}

constexpr Cost attention_cost(std::span<const std::int64_t> offsets, Index heads, Index kv_heads, Index head_dim,
                              int bytes_per_element) {
  const Index tokens = offsets.empty() ? 0 : offsets.back() - offsets.front();
  return attention_cost(causal_pairs(offsets), tokens, heads, kv_heads, head_dim, bytes_per_element);
}

}  // namespace shardproof::ops
