// Top-k routing, by default Mixtral's rule: softmax over the experts, the k largest, optionally renormalised to sum to
// one.
//   weight_i = e_i / sum of e, e_i = exp(logit_i - max logit)
// The sum runs over the chosen experts in slot order (normalise), or over all experts in index order; each step is one
// operation of T, then the weight is stored. In `exact` every e_i is rounded to a multiple of kExpStep.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// What varies between models.
template <class T>
struct RouteOptions {
  Index top_k = 0;
  bool normalise = true;
  /// Scores are 1 / (1 + exp(-logit)), one operation of T a step, each the sum over no other. In `exact` rounded to a
  /// multiple of kExpStep. A weight is its score, over the sum of the chosen ones + 1e-20 if normalised.
  bool sigmoid = false;
  std::span<const T> selection_bias = {};  ///< [experts], added to the scores for the choice alone
  /// The experts lie in so many groups, and those of the top_groups best are chosen from. A group is as good as the sum
  /// of its two best scores; without sigmoid, as its best logit. Ties to the lower group.
  Index groups = 1;
  Index top_groups = 1;
  /// What the scores of the other groups' experts become. Some code puts 0, which a score with its bias may be below.
  double closed_score = -std::numeric_limits<double>::infinity();
  /// What no model does, but code has done: with sigmoid, weights are of the scores with their bias.
  bool weighs_bias = false;
  double scale = 1;  ///< times the weight, before it is stored
  /// A weight is exp(l - m) over the sum of exp(l' - m), m the largest logit of those that no earlier slot chose, over
  /// those of them with (m - l') / max(|l'|, m) <= 2 jitter, in index order; one operation of T a step.
  bool sparsemixer = false;
  double jitter = 0;
};

/// What the choice is made by: logits, or with sigmoid the scores and their bias. [tokens, experts]; not stored.
template <class T>
void selection_scores(MatrixView<const T> logits, const RouteOptions<T>& options, Format format, MatrixView<T> scores);

/// Chooses by selection scores, as `route` does by logits: ids [tokens, top_k] in order of falling score.
template <class T>
void choose_experts(MatrixView<const T> scores, const RouteOptions<T>& options, MatrixView<std::int32_t> ids);

/// The weights of experts that are chosen already, from the logits.
template <class T>
void route_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, const RouteOptions<T>& options,
                   Format format, MatrixView<T> weights);

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
