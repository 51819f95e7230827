// Heads of latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): from each head's product with the latent, its key and
// its value; the end of the key is one for all heads. Moves values, computes nothing.
#pragma once

#include "ops/cost.h"
#include "ops/matrix.h"

namespace shardproof::ops {

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

}  // namespace shardproof::ops
