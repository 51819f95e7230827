// The rule of attention: out = sum_j P_j v_j, P the softmax of the scores s_j = scale q . k_j.
//
// As the op computes it (ops/attention.h), with d = head_dim, n keys in tiles of ops::kAttentionTile, t of them:
//   the score of key j is off by at most e_j = gamma(d + 3) scale sum |q_i k_ji|: the scale is rounded, its product
//   with q, d products and sums;
//   its exponential, from a maximum that all keys share in the end, has the exponent off by at most
//   D_j = e_j + (t + 1) u (largest - s_j + e_j)  (each difference is rounded, and differences of running maxima add up)
//         + (t + 1) kExpUnits u + t u  (an exponential and a product for each tile that moved the maximum);
//   so with P_j (1 + x_j), |x_j| <= exp(D_j) - 1, in place of P_j:
//   |out' - out| <= sum P_j |x_j| |v_j - out| / (1 - max |x_j|);
//   the sums themselves add gamma(n + t + 2) (sum P_j |v_j| + |out|): products, sums, the scaling of what there is at
//   each tile, and the quotient;
//   a head's sink is one more P_j, exact, of value 0, and one more maximum to move;
//   keys below exp(-86.6) of the largest count as none: n kExpFlush max |v|.
// Others have their own tiles, of one key at worst, and their own exponential; they round P_j, of which
// sum P_j |v_j| shows, and with elementary ops the product q . k and its scaling: e_j is that much wider. Where q, k or
// v are not the run's own but within errors d of it, |q| d_k + d_q |k| + d_q d_k of every product goes into e_j, and
// d_v into the values.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {
namespace {

/// Where one query of one head looks.
struct Query {
  std::int64_t row = 0;
  std::int64_t first_key = 0;  ///< the row of the first key that it sees; the last is its own
  std::int64_t head = 0;
  std::int64_t kv_head = 0;
  std::int64_t keys() const { return row - first_key + 1; }
};

struct Tensors {
  Input q, k, v;
  const AttentionSpec& spec;
  std::vector<double> sinks;
};

/// The bounds of all elements of one query's context, [value_dim].
std::vector<double> errors_of(const Profile& profile, const Tensors& in, const Query& query, const double* out) {
  const double u = profile.compute.relative;
  const std::int64_t dim = in.spec.head_dim, value_dim = in.spec.value_dim();
  const double scale = in.spec.score_scale();
  const std::int64_t keys = query.keys();
  // A window may begin inside a tile.
  const std::int64_t tile = profile.kind == RoundingProfile::ours ? ops::kAttentionTile : 1;
  const std::int64_t whole_tiles =
      (keys + tile - 1) / tile + (in.spec.sliding_window > 0 ? 1 : 0) + (in.sinks.empty() ? 0 : 1);
  const auto tiles = static_cast<double>(whole_tiles);
  std::vector<double> score(static_cast<std::size_t>(keys)), exponent(score.size());
  for (std::int64_t j = 0; j < keys; ++j) {
    const double* q = in.q.row(query.row) + query.head * dim;
    const double* k = in.k.row(query.first_key + j) + query.kv_head * dim;
    double dot = 0, magnitude = 0, inherited = 0;
    for (std::int64_t i = 0; i < dim; ++i) {
      dot += q[i] * k[i];
      magnitude += std::abs(q[i] * k[i]);
      const double of_q = in.q.error(query.row, query.head * dim + i);
      const double of_k = in.k.error(query.first_key + j, query.kv_head * dim + i);
      inherited += std::abs(q[i]) * of_k + of_q * (std::abs(k[i]) + of_k);
    }
    score[static_cast<std::size_t>(j)] = dot * scale;
    const double error = (inherited + gamma(static_cast<double>(dim) + 3, u) * (magnitude + inherited)) * scale +
                         static_cast<double>(dim) * profile.compute.underflow;
    exponent[static_cast<std::size_t>(j)] = step_error(profile, 2, dot * scale, error);
  }
  if (!in.sinks.empty()) {
    score.push_back(in.sinks[static_cast<std::size_t>(query.head)]);
    exponent.push_back(0);
  }
  const double largest = *std::ranges::max_element(score);
  double sum = 0, worst = 0;
  for (std::size_t j = 0; j < score.size(); ++j) {
    exponent[j] += u * ((tiles + 1) * (largest - score[j] + exponent[j]) + (tiles + 1) * profile.exp_units + tiles);
    score[j] = std::exp(score[j] - largest);
    sum += score[j];
    worst = std::max(worst, score[j] > 0 ? std::expm1(exponent[j]) : 0);
  }
  std::vector<double> errors(static_cast<std::size_t>(value_dim));
  const double sums = gamma(static_cast<double>(score.size()) + tiles + 2, u);
  for (std::int64_t i = 0; i < value_dim; ++i) {
    double by_scores = 0, magnitude = 0, largest_value = 0, by_values = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      const double value = in.v.row(query.first_key + j)[query.kv_head * value_dim + i];
      const double share = score[static_cast<std::size_t>(j)] / sum;
      by_scores += share * std::expm1(exponent[static_cast<std::size_t>(j)]) * std::abs(value - out[i]);
      magnitude += share * std::abs(value);
      const double of_value = in.v.error(query.first_key + j, query.kv_head * value_dim + i);
      by_values += share * std::exp(exponent[static_cast<std::size_t>(j)]) * of_value;
      largest_value = std::max(largest_value, std::abs(value));
    }
    if (!in.sinks.empty()) by_scores += score.back() / sum * std::expm1(exponent.back()) * std::abs(out[i]);
    // Where a score is off by as much as it takes to change everything, no bound is given.
    const double moved = worst < 1 ? (by_scores + by_values) / (1 - worst) : std::numeric_limits<double>::infinity();
    const double rounded =
        worst < 1 ? profile.probability.relative * (1 + worst) / (1 - worst) * (magnitude + by_values) : 0;
    const double error = moved + rounded + sums * (1 + worst) * (magnitude + std::abs(out[i]) + moved) +
                         static_cast<double>(keys) * ((kExpFlush + profile.probability.underflow) * 2 * largest_value +
                                                      profile.compute.underflow);
    errors[static_cast<std::size_t>(i)] = stored_error(profile, out[i], error);
  }
  return errors;
}

}  // namespace

Judged judge_attention(const Rule& rule) {
  const Rules& rules = rule.rules();
  const AttentionSpec& spec = rule.layer().attention;
  const Tensors in{rule.input(TapKind::attention_q), rule.input(TapKind::attention_k), rule.input(TapKind::attention_v),
                   spec, vector_of(rule, Weight::attention_sinks)};
  const reference::Tensor context =
      reference::attention(in.q, in.k, in.v, rules.batch.lengths(), spec, in.sinks, reference::Arithmetic::float64);
  const std::int64_t value_dim = spec.value_dim();
  Comparison comparison = rule.comparison();
  Query candidate;
  std::int64_t candidate_at = 0;
  for (std::int64_t row = 0; row < context.rows; ++row) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      const std::int64_t before = rules.positions[static_cast<std::size_t>(row)];
      const std::int64_t seen = spec.sliding_window > 0 ? std::min(before, spec.sliding_window - 1) : before;
      const Query query{row, row - seen, head, head / (spec.heads / spec.kv_heads)};
      const double* out = context.row(row) + head * value_dim;
      // As if the scores were exact and the values had one sign.
      const double sums = 2 * gamma(static_cast<double>(query.keys()) + 3, rules.profile.compute.relative);
      std::vector<double> errors;
      for (std::int64_t i = 0; i < value_dim; ++i) {
        const double least = stored_error(rules.profile, out[i], sums * std::abs(out[i]));
        const auto whole = [&] {
          if (errors.empty()) errors = errors_of(rules.profile, in, query, out);
          return errors[static_cast<std::size_t>(i)];
        };
        if (comparison.element(row, head * value_dim + i, out[i], least, least, whole)) {
          candidate = query;
          candidate_at = i;
        }
      }
    }
  }
  if (comparison.candidate()) {
    const double* out = context.row(candidate.row) + candidate.head * value_dim;
    comparison.settle(errors_of(rules.profile, in, candidate, out)[static_cast<std::size_t>(candidate_at)]);
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
