// Of one query of one head: what its keys weigh, and how far rounding may take that. The rule is attention.cpp's.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

struct AttentionInputs {
  /// Of the layer's heads.
  explicit AttentionInputs(const Rule& rule);
  /// Of latent attention in its absorbed form: queries of latents, which are keys that all heads share.
  static AttentionInputs of_latents(const Rule& rule);

  Input q, k, v;
  /// How heads attend; of latents, as if they were grouped-query attention with one head of keys.
  AttentionSpec spec;
  std::vector<double> sinks;

 private:
  AttentionInputs() = default;
};

/// Where one query of one head looks.
struct Query {
  std::int64_t row = 0;
  std::int64_t head = 0;
  std::int64_t kv_head = 0;
  std::vector<std::int64_t> keys;  ///< rows of the keys that it sees
};

struct Softmax {
  std::vector<double> share;     ///< P_j of each key, and of the sink behind them
  std::vector<double> exponent;  ///< D_j: that of its exponential is off by at most this
  double largest = 0;            ///< score
  double sum = 0;                ///< of the exponentials
  double worst = 0;              ///< max expm1(D_j) of those that are not zero
  double tiles = 0;
};

/// `tiles` of keys, between which a running maximum may move.
Softmax softmax_of(const Profile& profile, const AttentionInputs& in, const Query& query, std::int64_t tiles);
/// sum P_j v_j, [value_dim].
std::vector<double> context_of(const AttentionInputs& in, const Query& query, const Softmax& softmax);
/// Holds the context of rows of the tap, all or those of `wanted`, to the rule.
void compare_attention(const Rule& rule, const AttentionInputs& in, const std::vector<bool>& wanted,
                       Comparison& comparison);
/// The bounds of all elements of a query's context, [value_dim].
std::vector<double> context_errors(const Profile& profile, const AttentionInputs& in, const Query& query,
                                   const Softmax& softmax, const double* out);

}  // namespace shardproof::rounding
