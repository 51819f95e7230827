// Norms of queries and keys over all heads together, of which each rank of tp has some.
#include <cmath>
#include <limits>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {
namespace {

/// Of a rank of tp: the columns of keys that it adds the squares of.
Range counted_keys(const Rule& rule) {
  const Rules& rules = rule.rules();
  for (const Layout& layout : rules.deployment.layouts) {
    if (layout.at.tp != rule.tap().part) continue;
    const Range heads = layout.layer(rules.model, rule.tap().layer).first_kv_heads;
    const std::int64_t dim = rule.layer().attention.head_dim;
    return {heads.begin * dim, heads.count * dim};
  }
  return {};
}

}  // namespace

/// sum x^2 of n terms, each a product and a sum: gamma(n) of it, all terms being positive. Not stored. Of an x that is
/// off by e, a square moves by (2 |x| + e) e at most.
Judged judge_squares(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  const auto compare = [&](TapKind projection, Range cols, std::int64_t column) {
    if (cols.count == 0) {
      for (std::int64_t t = 0; t < rule.got().rows; ++t) comparison.element(t, column, 0, 0);
      return;
    }
    const Input x = rule.input(projection, cols);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      double sum = 0, inherited = 0;
      for (std::int64_t i = 0; i < x.cols; ++i) {
        const double value = std::abs(x.row(t)[i]), error = x.error(t, i);
        sum += value * value;
        inherited += (2 * value + error) * error;
      }
      if (sum > profile.largest_scalar) comparison.overflow(t, column, sum);
      comparison.element(t, column, sum, inherited + product_error(profile, x.cols, sum + inherited));
    }
  };
  compare(TapKind::attention_q_projection, rule.part_of_weight(Weight::attention_q_norm), 0);
  compare(TapKind::attention_k_projection, counted_keys(rule), 1);
  return std::move(comparison).finish();
}

/// y = x weight / sqrt(v), v = S / n + eps, of the squares S of all columns: a quotient, the rounding of eps, a sum, of
/// which the root halves the error; then as judge_norm() has it. Of an S that is off by e, v moves by e / n and r =
/// sqrt(v) by E = e / (n r) at most.
Judged judge_norm_of_squares(const Rule& rule, const Input& x, std::int64_t column, Weight weight) {
  const Rules& rules = rule.rules();
  const Profile& profile = rules.profile;
  const Unit& unit = profile.compute;
  const Input squares = rule.input(TapKind::attention_squares);
  const std::vector<double> scale = vector_of(rule, weight);
  const double root = profile.kind == RoundingProfile::ours ? 0 : 4;
  const double relative = gamma(1.5 + 5 + root, unit.relative), n = static_cast<double>(x.cols);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const double v = squares.row(t)[column] / n + rules.model.rms_norm_eps, r = std::sqrt(v);
    const double moved = r > 0 ? squares.error(t, column) / (n * r) : 0;
    const double underflow = v > 0 ? unit.underflow / v : 0;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double weight_of = std::abs(scale[static_cast<std::size_t>(i)]);
      const double value = x.row(t)[i] / r * scale[static_cast<std::size_t>(i)];
      const double inherited = moved < r ? weight_of * (x.error(t, i) + std::abs(x.row(t)[i]) * moved / r) / (r - moved)
                                         : std::numeric_limits<double>::infinity();
      const double error = inherited + (relative + underflow) * (std::abs(value) + inherited) + 2 * unit.underflow;
      const double stepped = step_error(profile, 1, value, error) + profile.step.underflow * weight_of;
      comparison.element(t, i, value, stored_error(profile, value, stepped));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_query_key_norm(const Rule& rule, TapKind projection, Weight weight) {
  const AttentionSpec& attention = rule.layer().attention;
  const Input x = rule.input(projection);
  if (attention.query_key_norm != QueryKeyNorm::full) return judge_norm(rule, x, weight, attention.head_dim);
  return judge_norm_of_squares(rule, x, weight == Weight::attention_q_norm ? 0 : 1, weight);
}

}  // namespace shardproof::rounding
