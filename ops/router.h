// Top-k routing, Mixtral's rule: softmax over the experts, the k largest, optionally renormalised to sum to one.
//   weight_i = e_i / sum of e, e_i = exp(logit_i - max logit)
// The sum runs over the chosen experts in slot order (normalise), or over all experts in index order; each step is one
// operation of T, then the weight is stored. In `exact` every e_i is rounded to a multiple of kExpStep.
#pragma once

#include <cstdint>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// logits [tokens, experts] -> ids and weights [tokens, top_k], in order of falling logit, ties to the lower expert.
/// 1 <= top_k <= experts (unless there are no tokens). A logit that is NaN is never preferred to one that is not.
template <class T>
void route(MatrixView<const T> logits, Index top_k, bool normalise, Format format, MatrixView<std::int32_t> ids,
           MatrixView<T> weights);

/// The weights of experts that are chosen already: ids [tokens, slots], each in 0..experts-1. The same rule and the
/// same bits as `route` for the ids that it chooses.
template <class T>
void route_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, bool normalise, Format format,
                   MatrixView<T> weights);

/// About top_k + 3 flops a logit (compare per slot, subtract, exp and add); ids count 4 bytes.
constexpr Cost route_cost(Index tokens, Index experts, Index top_k, int bytes_per_element) {
  const auto rows = static_cast<double>(tokens), width = static_cast<double>(experts), k = static_cast<double>(top_k);
  return {rows * width * (k + 3), rows * (width * bytes_per_element + k * (4 + bytes_per_element))};
}

}  // namespace shardproof::ops
