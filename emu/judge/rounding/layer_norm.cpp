// Layer norms with a bias.
#include <cmath>
#include <limits>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {
namespace {

/// How far the scalar may take the parts of a row's norm: its mean, each difference from it, and the root r.
struct RowErrors {
  double mean = 0;      ///< of the differences, what they share
  double variance = 0;  ///< sum d^2 / n + eps
  double root = 0;      ///< of its root
};

/// d = x - mean: the mean is off by gamma(n + 1) sum |x| / n and the mean of x's errors, d by that, by x's own error e
/// and by its rounding: D_i. v = sum d^2 / n by sum (2 |d| + D) D / n and gamma(n + 2) of it, and its root r by as much
/// over r. Others may take sums in one pass that updates its mean: twice as many roundings a term.
RowErrors errors_of_row(const Profile& profile, const Input& x, const reference::Tensor& d, std::int64_t t,
                        double eps) {
  const double u = profile.compute.relative, n = static_cast<double>(x.cols);
  const double passes = profile.kind == RoundingProfile::ours ? 1 : 2;
  double magnitude = 0, inherited = 0;
  for (std::int64_t i = 0; i < x.cols; ++i) {
    magnitude += std::abs(x.row(t)[i]);
    inherited += x.error(t, i);
  }
  RowErrors errors;
  errors.mean = inherited / n + gamma(passes * (n + 1), u) * (magnitude + inherited) / n;
  double squares = 0, moved = 0;
  for (std::int64_t i = 0; i < x.cols; ++i) {
    const double value = std::abs(d.row(t)[i]), error = x.error(t, i) + errors.mean;
    const double whole = error + u * (value + error);
    squares += value * value;
    moved += (2 * value + whole) * whole;
  }
  errors.variance = squares / n + eps;
  const double of_variance = moved / n + gamma(passes * (n + 2), u) * (squares + moved) / n;
  errors.root = errors.variance > 0 ? of_variance / std::sqrt(errors.variance) : 0;
  return errors;
}

/// y = d / r weight + bias: then as judge_norm() has it, and one sum more. Eager, what is normed and its product with
/// the weight are stored before they go on.
Judged judge_layer_norm(const Rule& rule, const Input& x, Weight weight, Weight bias_weight) {
  const Rules& rules = rule.rules();
  const Profile& profile = rules.profile;
  const Unit& unit = profile.compute;
  const std::vector<double> scale = vector_of(rule, weight), bias = vector_of(rule, bias_weight);
  const reference::Tensor d = reference::centred(x, reference::Arithmetic::float64);
  const double relative = gamma(profile.kind == RoundingProfile::ours ? 7 : 11, unit.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const RowErrors errors = errors_of_row(profile, x, d, t, rules.model.rms_norm_eps);
    const double r = std::sqrt(errors.variance);
    if (errors.variance * static_cast<double>(x.cols) > profile.largest_scalar) {
      comparison.overflow(t, 0, errors.variance * static_cast<double>(x.cols));
    }
    const double underflow = errors.variance > 0 ? unit.underflow / errors.variance : 0;
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double normed = d.row(t)[i] / r * scale[at], value = normed + bias[at], weight_of = std::abs(scale[at]);
      const double of_d = x.error(t, i) + errors.mean;
      const double moved = of_d + unit.relative * (std::abs(d.row(t)[i]) + of_d);
      const double inherited = errors.root < r
                                   ? weight_of * (moved + std::abs(d.row(t)[i]) * errors.root / r) / (r - errors.root)
                                   : std::numeric_limits<double>::infinity();
      const double before = inherited + (relative + underflow) * (std::abs(normed) + inherited) + 3 * unit.underflow;
      const double stepped = step_error(profile, 2, normed, before) + profile.step.underflow * weight_of;
      const double error = stepped + unit.relative * (std::abs(value) + stepped);
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace

Judged judge_stream_norm(const Rule& rule, const Input& x, Weight weight, Weight bias) {
  if (rule.rules().model.layer_norm) return judge_layer_norm(rule, x, weight, bias);
  return judge_norm(rule, x, weight, rule.rules().model.hidden_size);
}

}  // namespace shardproof::rounding
