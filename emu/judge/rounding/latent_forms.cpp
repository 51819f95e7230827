// The rules of latent attention in its absorbed form (ops/latent.h), of the tokens that are in it. Of a head with
// weight [K; V], d = still elements of a query that meet K, r = rank of the latent:
//   q' = K^T q_still     d products a sum, stored: off by gamma(d) sum |K q| and its store; what turns is copied.
//   l = sum_j P_j c_j    attention's rule (attention.cpp) with the keys [c_j, r_j] of r + turned elements and
//                        the values c_j: a score is off by gamma(r + turned + 3) scale sum |q'_i k_ji|.
//   out = V l            r products a sum, stored.
// Each is held to what the run itself had, q', c, l as stored: nothing of one step's error is in the next one's bound.
// Against the plain form, which stores k = K c and v = V c instead, nothing is bounded: neither is the other's
// rounding. The cached key that all heads share is the end of any head's key, as the run has it.
#include <algorithm>
#include <cmath>
#include <utility>

#include "emu/judge/rounding/internal/softmax.h"

namespace shardproof::rounding {
namespace {

/// A head's rows of the weight: [rows, rank].
class HeadWeights {
 public:
  explicit HeadWeights(const Rule& rule) : rule_(rule), spec_(rule.layer().attention) {}
  std::int64_t still() const { return spec_.head_dim - spec_.rope.dim; }
  std::int64_t rank() const { return spec_.kv_lora_rank; }
  ops::Matrix<double> keys(std::int64_t head) const { return read({head * both(), still()}); }
  ops::Matrix<double> values(std::int64_t head) const { return read({head * both() + still(), spec_.value_dim()}); }

 private:
  std::int64_t both() const { return still() + spec_.value_dim(); }
  ops::Matrix<double> read(Range rows) const {
    const Rules& rules = rule_.rules();
    ops::Matrix<double> weight(rows.count, rank());
    rules.weights.read_stored(weight_spec(rules.model, Weight::attention_kv, rule_.tap().layer), rows, {0, rank()},
                              rules.format, weight.view());
    return weight;
  }

  const Rule& rule_;
  const AttentionSpec& spec_;
};

/// stored(sum_i x(row, begin + i) w_i), held to the tap's element.
template <class WeightAt>
void compare_sum(const Input& x, std::int64_t row, Range from, const WeightAt& weight, std::int64_t col,
                 Comparison& comparison) {
  double value = 0, magnitude = 0, inherited = 0;
  for (std::int64_t i = 0; i < from.count; ++i) {
    const double w = weight(i), element = x.row(row)[from.begin + i];
    value += element * w;
    magnitude += std::abs(element * w);
    inherited += x.error(row, from.begin + i) * std::abs(w);
  }
  const double error = inherited + product_error(comparison.profile(), from.count, magnitude + inherited);
  comparison.element(row, col, value, stored_error(comparison.profile(), value, error));
}

}  // namespace

AttentionInputs AttentionInputs::of_latents(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const std::int64_t rank = spec.kv_lora_rank, turned = spec.rope.dim;
  AttentionInputs in;
  in.q = rule.input(TapKind::attention_q_absorbed);
  in.v = rule.input(TapKind::attention_kv_latent_norm);
  const Input shared = rule.input(TapKind::attention_k, Range{spec.head_dim - turned, turned});
  in.k = Input(in.v.rows, rank + turned);
  if (in.v.derived() || shared.derived()) in.k.errors.resize(in.k.values.size());
  for (std::int64_t row = 0; row < in.k.rows; ++row) {
    std::copy_n(shared.row(row), turned, std::copy_n(in.v.row(row), rank, in.k.row(row)));
    for (std::int64_t i = 0; in.k.derived() && i < rank + turned; ++i) {
      in.k.errors[static_cast<std::size_t>(row * in.k.cols + i)] =
          i < rank ? in.v.error(row, i) : shared.error(row, i - rank);
    }
  }
  in.spec.heads = spec.heads;
  in.spec.kv_heads = 1;
  in.spec.head_dim = rank + turned;
  in.spec.v_head_dim = rank;
  in.spec.attention_multiplier = spec.score_scale();
  return in;
}

Judged judge_absorbed_queries(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const HeadWeights weights(rule);
  const Input q = rule.input(TapKind::attention_q);
  const std::int64_t still = weights.still(), rank = weights.rank(), width = rank + spec.rope.dim;
  Comparison comparison = rule.comparison();
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const ops::Matrix<double> keys = weights.keys(head);
    const std::int64_t begin = head * spec.head_dim;
    for (std::int64_t row = 0; row < q.rows; ++row) {
      if (!rule.rules().absorbed[static_cast<std::size_t>(row)]) continue;
      for (std::int64_t col = 0; col < rank; ++col) {
        compare_sum(
            q, row, {begin, still}, [&](std::int64_t i) { return keys(i, col); }, head * width + col, comparison);
      }
      for (std::int64_t i = 0; i < spec.rope.dim; ++i) {
        comparison.element(row, head * width + rank + i, q.row(row)[begin + still + i],
                           q.error(row, begin + still + i));
      }
    }
  }
  return std::move(comparison).finish();
}

Judged judge_latent_context(const Rule& rule) {
  Comparison comparison = rule.comparison();
  compare_attention(rule, AttentionInputs::of_latents(rule), rule.rules().absorbed, comparison);
  return std::move(comparison).finish();
}

Judged judge_context_in_forms(const Rule& rule) {
  const std::vector<bool>& absorbed = rule.rules().absorbed;
  std::vector<bool> plain = absorbed;
  plain.flip();
  Comparison comparison = rule.comparison();
  compare_attention(rule, AttentionInputs(rule), plain, comparison);
  const HeadWeights weights(rule);
  const AttentionSpec& spec = rule.layer().attention;
  const Input latents = rule.input(TapKind::attention_latent_context);
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const ops::Matrix<double> values = weights.values(head);
    for (std::int64_t row = 0; row < latents.rows; ++row) {
      if (!absorbed[static_cast<std::size_t>(row)]) continue;
      for (std::int64_t i = 0; i < spec.value_dim(); ++i) {
        compare_sum(
            latents, row, {head * weights.rank(), weights.rank()}, [&](std::int64_t j) { return values(i, j); },
            head * spec.value_dim() + i, comparison);
      }
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
