// Sums of two tensors, and products with a multiplier of the model.
#include <cmath>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

Judged judge_sum(const Rule& rule, const Input& x, const Input& y) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double value = x.row(t)[i] + y.row(t)[i];
      const double inherited = x.error(t, i) + y.error(t, i);
      const double error = inherited + profile.compute.relative * (std::abs(value) + inherited);
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_addition_to_stream(const Rule& rule, const Input& x, const Input& y) {
  const double factor = rule.rules().model.residual_multiplier;
  if (factor == 1) return judge_sum(rule, x, y);
  Input scaled = y;
  scaled.errors.resize(y.values.size());
  for (std::int64_t t = 0; t < y.rows; ++t) {
    for (std::int64_t i = 0; i < y.cols; ++i) {
      const auto at = static_cast<std::size_t>(t * y.cols + i);
      scaled.values[at] = factor * y.row(t)[i];
      scaled.errors[at] = scaled_error(rule.rules().profile, scaled.values[at], factor * y.error(t, i));
    }
  }
  return judge_sum(rule, x, scaled);
}

Judged judge_scaled(const Rule& rule, const Input& x, double factor) {
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double value = factor * x.row(t)[i];
      comparison.element(t, i, value, scaled_error(rule.rules().profile, value, factor * x.error(t, i)));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
