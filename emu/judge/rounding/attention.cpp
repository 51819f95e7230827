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
#include <numeric>

#include "emu/judge/rounding/internal/softmax.h"

namespace shardproof::rounding {

AttentionInputs::AttentionInputs(const Rule& rule)
    : q(rule.input(TapKind::attention_q)),
      k(rule.input(TapKind::attention_k)),
      v(rule.input(TapKind::attention_v)),
      spec(rule.layer().attention),
      sinks(vector_of(rule, Weight::attention_sinks)) {}

Softmax softmax_of(const Profile& profile, const AttentionInputs& in, const Query& query, std::int64_t tiles) {
  const double u = profile.compute.relative;
  const std::int64_t dim = in.spec.head_dim;
  const double scale = in.spec.score_scale();
  Softmax softmax;
  softmax.tiles = static_cast<double>(tiles);
  std::vector<double>&score = softmax.share, &exponent = softmax.exponent;
  for (const std::int64_t key : query.keys) {
    const double* q = in.q.row(query.row) + query.head * dim;
    const double* k = in.k.row(key) + query.kv_head * dim;
    double dot = 0, magnitude = 0, inherited = 0;
    for (std::int64_t i = 0; i < dim; ++i) {
      dot += q[i] * k[i];
      magnitude += std::abs(q[i] * k[i]);
      const double of_q = in.q.error(query.row, query.head * dim + i);
      const double of_k = in.k.error(key, query.kv_head * dim + i);
      inherited += std::abs(q[i]) * of_k + of_q * (std::abs(k[i]) + of_k);
    }
    score.push_back(dot * scale);
    const double error = (inherited + gamma(static_cast<double>(dim) + 3, u) * (magnitude + inherited)) * scale +
                         static_cast<double>(dim) * profile.compute.underflow;
    exponent.push_back(step_error(profile, 2, dot * scale, error));
  }
  if (!in.sinks.empty()) {
    score.push_back(in.sinks[static_cast<std::size_t>(query.head)]);
    exponent.push_back(0);
  }
  if (score.empty()) return softmax;
  softmax.largest = *std::ranges::max_element(score);
  for (std::size_t j = 0; j < score.size(); ++j) {
    exponent[j] += u * ((softmax.tiles + 1) * (softmax.largest - score[j] + exponent[j]) +
                        (softmax.tiles + 1) * profile.exp_units + softmax.tiles);
    score[j] = std::exp(score[j] - softmax.largest);
    softmax.sum += score[j];
    softmax.worst = std::max(softmax.worst, score[j] > 0 ? std::expm1(exponent[j]) : 0);
  }
  for (double& share : softmax.share) share /= softmax.sum;
  return softmax;
}

std::vector<double> context_of(const AttentionInputs& in, const Query& query, const Softmax& softmax) {
  const std::int64_t value_dim = in.spec.value_dim();
  std::vector<double> context(static_cast<std::size_t>(value_dim), 0);
  for (std::size_t j = 0; j < query.keys.size(); ++j) {
    const double* v = in.v.row(query.keys[j]) + query.kv_head * value_dim;
    for (std::size_t i = 0; i < context.size(); ++i) context[i] += softmax.share[j] * v[i];
  }
  return context;
}

std::vector<double> context_errors(const Profile& profile, const AttentionInputs& in, const Query& query,
                                   const Softmax& softmax, const double* out) {
  const std::int64_t value_dim = in.spec.value_dim();
  std::vector<double> errors(static_cast<std::size_t>(value_dim));
  const double sums = gamma(static_cast<double>(softmax.share.size()) + softmax.tiles + 2, profile.compute.relative);
  for (std::int64_t i = 0; i < value_dim; ++i) {
    double by_scores = 0, magnitude = 0, largest_value = 0, by_values = 0;
    for (std::size_t j = 0; j < query.keys.size(); ++j) {
      const double value = in.v.row(query.keys[j])[query.kv_head * value_dim + i];
      by_scores += softmax.share[j] * std::expm1(softmax.exponent[j]) * std::abs(value - out[i]);
      magnitude += softmax.share[j] * std::abs(value);
      const double of_value = in.v.error(query.keys[j], query.kv_head * value_dim + i);
      by_values += softmax.share[j] * std::exp(softmax.exponent[j]) * of_value;
      largest_value = std::max(largest_value, std::abs(value));
    }
    if (!in.sinks.empty()) by_scores += softmax.share.back() * std::expm1(softmax.exponent.back()) * std::abs(out[i]);
    // Where a score is off by as much as it takes to change everything, no bound is given.
    const double worst = softmax.worst;
    const double moved = worst < 1 ? (by_scores + by_values) / (1 - worst) : std::numeric_limits<double>::infinity();
    const double rounded =
        worst < 1 ? profile.probability.relative * (1 + worst) / (1 - worst) * (magnitude + by_values) : 0;
    const double error =
        moved + rounded + sums * (1 + worst) * (magnitude + std::abs(out[i]) + moved) +
        static_cast<double>(query.keys.size()) *
            ((kExpFlush + profile.probability.underflow) * 2 * largest_value + profile.compute.underflow);
    errors[static_cast<std::size_t>(i)] = stored_error(profile, out[i], error);
  }
  return errors;
}

namespace {

/// The bounds of one query's context, its keys in tiles; a window may begin inside one, and a sink is one more.
std::vector<double> errors_of(const Profile& profile, const AttentionInputs& in, Query query, std::int64_t keys,
                              const double* out) {
  query.keys.resize(static_cast<std::size_t>(keys));
  std::iota(query.keys.begin(), query.keys.end(), query.row - keys + 1);
  const std::int64_t tile = profile.kind == RoundingProfile::ours ? ops::kAttentionTile : 1;
  const std::int64_t tiles =
      (keys + tile - 1) / tile + (in.spec.sliding_window > 0 ? 1 : 0) + (in.sinks.empty() ? 0 : 1);
  return context_errors(profile, in, query, softmax_of(profile, in, query, tiles), out);
}

}  // namespace

void compare_attention(const Rule& rule, const AttentionInputs& in, const std::vector<bool>& wanted,
                       Comparison& comparison) {
  const Rules& rules = rule.rules();
  const AttentionSpec& spec = in.spec;
  const reference::Tensor context = reference::attention(in.q, in.k, in.v, rules.batch.lengths(), spec, in.sinks,
                                                         reference::Arithmetic::float64, wanted);
  const std::int64_t value_dim = spec.value_dim();
  Query candidate;
  std::int64_t candidate_keys = 0, candidate_at = 0;
  for (std::int64_t row = 0; row < context.rows; ++row) {
    if (!wanted.empty() && !wanted[static_cast<std::size_t>(row)]) continue;
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      const std::int64_t before = rules.positions[static_cast<std::size_t>(row)];
      const std::int64_t seen = spec.sliding_window > 0 ? std::min(before, spec.sliding_window - 1) : before;
      const Query query{.row = row, .head = head, .kv_head = head / (spec.heads / spec.kv_heads), .keys = {}};
      const std::int64_t keys = seen + 1;
      const double* out = context.row(row) + head * value_dim;
      // As if the scores were exact and the values had one sign.
      const double sums = 2 * gamma(static_cast<double>(keys) + 3, rules.profile.compute.relative);
      std::vector<double> errors;
      for (std::int64_t i = 0; i < value_dim; ++i) {
        const double least = stored_error(rules.profile, out[i], sums * std::abs(out[i]));
        const auto whole = [&] {
          if (errors.empty()) errors = errors_of(rules.profile, in, query, keys, out);
          return errors[static_cast<std::size_t>(i)];
        };
        if (comparison.element(row, head * value_dim + i, out[i], least, least, whole)) {
          candidate = query;
          candidate_keys = keys;
          candidate_at = i;
        }
      }
    }
  }
  if (comparison.candidate()) {
    const double* out = context.row(candidate.row) + candidate.head * value_dim;
    comparison.settle(
        errors_of(rules.profile, in, candidate, candidate_keys, out)[static_cast<std::size_t>(candidate_at)]);
  }
}

Judged judge_attention(const Rule& rule) {
  Comparison comparison = rule.comparison();
  compare_attention(rule, AttentionInputs(rule), {}, comparison);
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
