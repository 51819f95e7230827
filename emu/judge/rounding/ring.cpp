// The rules of attention in a ring over cp, or over dcp: a part for the keys of each rank, and the parts merged; of the
// absorbed form of latent attention over dcp, with queries of latents for queries and latents for keys.
//
// A part is attention to fewer keys, with the largest of their own scores: its context obeys the rule of attention with
// one tile. With x_j as there, lse = m + log sum exp(s_j - m) is off by at most
//   -log(1 - X) of its sum, X = sum P_j |x_j| + gamma(n + 1) (1 + sum P_j |x_j|) + n kExpFlush,
//   kLogUnits u of the logarithm, and u of the last sum.
// Which keys are a rank's follows from who owns their rows (TokenMap::home), or keeps them (CacheShare): every key is
// in one part.
//
// The merge, out = sum P_i o_i, P_i = exp(lse_i - lse), has c parts in place of keys, whose exponents are off by
//   D_i = u (max lse - lse_i) + kExpUnits u,
// hence by sum P_i (exp(D_i) - 1) |o_i - out| / (1 - max) + gamma(c + 2) (sum P_i |o_i| + |out|), as there. Its inputs
// are the parts as the run has them; of those without a key, exp(-infinity) = 0, and o_i counts for nothing.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "emu/judge/rounding/internal/softmax.h"

namespace shardproof::rounding {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Of std::log, relative to its result: within one unit in the last place, a second for what is of second order.
constexpr double kLogUnits = 2;

/// The tap is of latent attention in its absorbed form, of the tokens that are in it.
bool is_absorbed(const Rule& rule) {
  return tap_row(rule.tap().kind).absorbed;
}
bool is_due(const Rule& rule, std::int64_t row) {
  return !is_absorbed(rule) || rule.rules().absorbed[static_cast<std::size_t>(row)];
}
AttentionInputs inputs_of_part(const Rule& rule) {
  return is_absorbed(rule) ? AttentionInputs::of_latents(rule) : AttentionInputs(rule);
}

/// The keys of the tap's rank that each query sees: use(query) row by row, head by head.
template <class Use>
void for_each_query(const Rule& rule, const AttentionInputs& in, std::int64_t rows, const Use& use) {
  const Rules& rules = rule.rules();
  Query query;
  for (query.row = 0; query.row < rows; ++query.row) {
    if (!is_due(rule, query.row)) continue;
    query.keys.clear();
    for (std::int64_t key = query.row - rules.positions[static_cast<std::size_t>(query.row)]; key <= query.row; ++key) {
      if (rules.part_of[static_cast<std::size_t>(key)] == rule.tap().part) query.keys.push_back(key);
    }
    for (query.head = 0; query.head < in.spec.heads; ++query.head) {
      query.kv_head = query.head / (in.spec.heads / in.spec.kv_heads);
      use(std::as_const(query));
    }
  }
}

/// `by_nature`: that all values are one, or zero, is as it should be.
Judged finish(Comparison&& comparison, bool by_nature) {
  Judged judged = std::move(comparison).finish();
  if (by_nature) judged.vacuous.clear();
  return judged;
}

double lse_error(const Profile& profile, const Softmax& softmax, double lse) {
  const double u = profile.compute.relative, count = static_cast<double>(softmax.share.size());
  double by_scores = 0;
  for (std::size_t j = 0; j < softmax.share.size(); ++j)
    by_scores += softmax.share[j] * std::expm1(softmax.exponent[j]);
  const double relative = by_scores + gamma(count + 1, u) * (1 + by_scores) + count * kExpFlush;
  if (!(relative < 1)) return kInfinity;
  const double of_sum = -std::log1p(-relative);
  return of_sum + kLogUnits * u * (std::log(softmax.sum) + of_sum) + u * (std::abs(lse) + 2 * of_sum);
}

}  // namespace

Judged judge_ring_context(const Rule& rule) {
  const AttentionInputs in = inputs_of_part(rule);
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  const std::int64_t value_dim = in.spec.value_dim();
  bool has_keys = false;
  for_each_query(rule, in, rule.got().rows, [&](const Query& query) {
    const Softmax softmax = softmax_of(profile, in, query, 1);
    const std::vector<double> context = context_of(in, query, softmax);
    std::vector<double> errors(context.size(), 0);
    has_keys = has_keys || !query.keys.empty();
    if (!query.keys.empty()) errors = context_errors(profile, in, query, softmax, context.data());
    for (std::int64_t i = 0; i < value_dim; ++i) {
      const auto at = static_cast<std::size_t>(i);
      comparison.element(query.row, query.head * value_dim + i, context[at], errors[at]);
    }
  });
  // A rank may hold no keys at all.
  return finish(std::move(comparison), !has_keys);
}

Judged judge_ring_lse(const Rule& rule) {
  const AttentionInputs in = inputs_of_part(rule);
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  bool has_empty = false;
  for_each_query(rule, in, rule.got().rows, [&](const Query& query) {
    if (query.keys.empty()) {
      has_empty = true;
      // Minus infinity and nothing else; a difference of infinities would say nothing.
      if (rule.got().at(query.row, query.head) != -kInfinity)
        comparison.element(query.row, query.head, 0, 0, 0, [] { return 0.0; });
      return;
    }
    const Softmax softmax = softmax_of(profile, in, query, 1);
    const double lse = softmax.largest + std::log(softmax.sum);
    comparison.element(query.row, query.head, lse, lse_error(profile, softmax, lse));
  });
  // Beside minus infinity any number is another value.
  return finish(std::move(comparison), has_empty);
}

Judged judge_ring_merge(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const double u = profile.compute.relative;
  const AttentionSpec& spec = rule.layer().attention;
  const bool absorbed = is_absorbed(rule);
  const std::int64_t value_dim = absorbed ? spec.kv_lora_rank : spec.value_dim();
  const Parallel& parallel = rule.rules().plan.parallel;
  const int count_of_parts = absorbed ? parallel.latent_parts() : parallel.key_parts(spec.latent());
  const auto parts = static_cast<std::size_t>(count_of_parts);
  std::vector<reference::Tensor> context, lse;
  for (int part = 0; part < count_of_parts; ++part) {
    context.push_back(rule.input(absorbed ? TapKind::attention_latent_part : TapKind::attention_ring_context, part));
    lse.push_back(rule.input(absorbed ? TapKind::attention_latent_lse : TapKind::attention_ring_lse, part));
  }
  Comparison comparison = rule.comparison();
  std::vector<double> share(parts), off(parts);
  for (std::int64_t row = 0; row < rule.got().rows; ++row) {
    if (!is_due(rule, row)) continue;
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      double largest = -kInfinity, sum = 0, worst = 0;
      for (const reference::Tensor& of_part : lse) largest = std::max(largest, of_part.row(row)[head]);
      for (std::size_t i = 0; i < parts; ++i) {
        const double below = lse[i].row(row)[head] == -kInfinity ? kInfinity : largest - lse[i].row(row)[head];
        share[i] = std::exp(-below);
        off[i] = share[i] == 0 ? 0 : std::expm1(u * below + profile.exp_units * u);
        sum += share[i];
        worst = std::max(worst, off[i]);
      }
      for (std::int64_t col = head * value_dim; col < (head + 1) * value_dim; ++col) {
        double out = 0, magnitude = 0, largest_value = 0, moved = 0;
        for (std::size_t i = 0; i < parts; ++i) {
          out += share[i] / sum * context[i].row(row)[col];
          magnitude += share[i] / sum * std::abs(context[i].row(row)[col]);
          largest_value = std::max(largest_value, std::abs(context[i].row(row)[col]));
        }
        for (std::size_t i = 0; i < parts; ++i) {
          moved += share[i] / sum * off[i] * std::abs(context[i].row(row)[col] - out);
        }
        moved = worst < 1 ? moved / (1 - worst) : kInfinity;
        const double count = static_cast<double>(parts);
        const double error = moved + gamma(count + 2, u) * (1 + worst) * (magnitude + std::abs(out) + moved) +
                             count * (kExpFlush * 2 * largest_value + profile.compute.underflow);
        comparison.element(row, col, out, stored_error(profile, out, error));
      }
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
