// Heads of latent attention (DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1 and appendix C). Of a
// token, c [rank] is what keys and values are made from, and r [turned] the end of the key, one for all heads. A head
// has a weight [still + value_dim, rank], of which the first `still` rows, K, make its key and the others, V, its
// value:
//   k = [K c, r]    v = V c    out = sum_j p_j v_j,  p the softmax of  scale q . k_j
// That is the plain form: keys and values of each head are made, and attention() is to these. The absorbed form never
// makes them. With q = [q_still, q_turned]
//   q . k = (K^T q_still) . c + q_turned . r    and    out = V (sum_j p_j c_j)
// so that each token's [c, r] is a key that all heads share, and c its value: attention with one head of keys, over
// what a cache holds as it lies there. Of real numbers both forms are the same; what is stored on the way is not.
#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Keys and values of the plain form, from each head's product with the latent; moves values, computes nothing.
/// product [tokens, heads * (still + value_dim)], shared [tokens, turned], k [tokens, heads * (still + turned)], v
/// [tokens, heads * value_dim]. k of a head is the first `still` of its product and then `shared`; v the rest.
template <class T>
void split_latent_heads(MatrixView<const T> product, MatrixView<const T> shared, Index value_dim, MatrixView<T> k,
                        MatrixView<T> v);

/// No flops; everything once.
constexpr Cost split_latent_heads_cost(Index tokens, Index product, Index shared, Index keys, Index values,
                                       int bytes_per_element) {
  return {0, static_cast<double>(tokens) * static_cast<double>(product + shared + keys + values) * bytes_per_element};
}

/// What a head of latent attention is made of.
struct LatentHead {
  Index still = 0;      ///< elements of a key that come of the latent
  Index turned = 0;     ///< that all heads share, behind these
  Index value_dim = 0;  ///< elements of a value, and of the context
  Index key_dim() const { return still + turned; }
};

/// The queries of the absorbed form. q [tokens, heads * (still + turned)], weight [heads * (still + value_dim), rank],
/// out [tokens, heads * (rank + turned)]: of each head [K^T q_still, q_turned]. Nothing is rounded to a format: the
/// caller stores. An element is a function of the head's query and of a column of its K alone: one chain of
/// multiply-adds over the rows of K in order (fused where the instruction set has it). out must not overlap the inputs.
/// Throws ShapeError when the shapes do not fit.
template <class T>
void absorb_queries(MatrixView<const T> q, MatrixView<const T> weight, const LatentHead& head, MatrixView<T> out);

/// What attention() and its parts (attention_parts.h) are told of the absorbed form: keys of rank + turned elements, of
/// which the first `rank` are the value. The scale is the plain form's, which says what the model computes: 0 is 1 /
/// sqrt(still + turned), however wide a latent is.
template <class T>
AttentionOptions<T> latent_options(const LatentHead& head, Index rank, double scale);

/// Attention of the absorbed form: of q [tokens, heads * (rank + turned)] to latents [slots, rank + turned], each
/// token's [c, r]; out [tokens, heads * rank], the weighted sums of c, stored. Spans, block_size, rounding and order of
/// the sums are attention()'s, with one head of keys whose first `rank` elements are its value: a score is rounded
/// once, over the latent and the shared part together. Throws ShapeError as attention() does.
template <class T>
void attend_to_latents(MatrixView<const T> q, MatrixView<const T> latents, std::span<const AttentionSpan> spans,
                       Index block_size, const LatentHead& head, double scale, Format format, MatrixView<T> out);

/// The context of the absorbed form: latents [tokens, heads * rank], weight as above, out [tokens, heads * value_dim]:
/// of each head V times its sum of latents. Nothing is rounded, and the sums are linear()'s, head by head. out must not
/// overlap the inputs. Throws ShapeError when the shapes do not fit.
template <class T>
void expand_context(MatrixView<const T> latents, MatrixView<const T> weight, const LatentHead& head, MatrixView<T> out);

/// Both products: 2 * rank flops for each element that a query, or a context, has beside the latent; the part of the
/// weight that it reads, its input and its output once.
constexpr Cost absorb_queries_cost(Index tokens, Index heads, Index rank, const LatentHead& head,
                                   int bytes_per_element) {
  const auto rows = static_cast<double>(tokens * heads), width = static_cast<double>(head.still);
  const auto latent = static_cast<double>(rank), turned = static_cast<double>(head.turned);
  const double moved = rows * (width + latent + 2 * turned) + static_cast<double>(heads) * width * latent;
  return {2 * rows * width * latent, moved * bytes_per_element};
}
constexpr Cost expand_context_cost(Index tokens, Index heads, Index rank, const LatentHead& head,
                                   int bytes_per_element) {
  const auto rows = static_cast<double>(tokens * heads), width = static_cast<double>(head.value_dim);
  const auto latent = static_cast<double>(rank);
  return {2 * rows * width * latent,
          (rows * (width + latent) + static_cast<double>(heads) * width * latent) * bytes_per_element};
}

/// 2 (2 rank + turned) flops for each of `pairs` of a query and a token that it sees, and each head; queries and
/// results of `tokens`, and `keys` latents, once.
constexpr Cost attend_to_latents_cost(double pairs, Index tokens, Index keys, Index heads, Index rank, Index turned,
                                      int bytes_per_element) {
  const auto latent = static_cast<double>(rank), shared = static_cast<double>(turned);
  const double rows = static_cast<double>(tokens) * static_cast<double>(heads);
  return {2 * pairs * static_cast<double>(heads) * (2 * latent + shared),
          (rows * (2 * latent + shared) + static_cast<double>(keys) * (latent + shared)) * bytes_per_element};
}

}  // namespace shardproof::ops
