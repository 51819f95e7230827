#include <algorithm>
#include <cmath>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

using reference::Tensor;

/// y = x weight / sqrt(v), v = sum x^2 / n + eps. v is off by gamma(n + 2) relatively, all its terms being positive: n
/// products and sums, the mean (or the rounding of eps), the addition. The inverse of its root by half as much and two
/// operations, and two products follow; one more covers what is of second order.
Judged judge_norm(const Rule& rule, const Tensor& whole, Weight weight, std::int64_t block) {
  const Rules& rules = rule.rules();
  const WeightSpec spec = weight_spec(rules.model, weight, rule.tap().layer);
  ops::Matrix<double> scale(1, spec.cols);
  rules.weights.read_stored(spec, {0, 1}, {0, spec.cols}, rules.format, scale.view());
  Tensor x = whole;
  x.rows = whole.rows * whole.cols / block;
  x.cols = block;
  const std::int64_t blocks = whole.cols / block;
  const Tensor y = reference::rms_norm(x, scale.span(), rules.model.rms_norm_eps, reference::Arithmetic::float64);
  const Unit& unit = rules.profile.compute;
  const double relative = gamma((static_cast<double>(x.cols) + 2) / 2 + 5, unit.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < y.rows; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < x.cols; ++i) squares += x.row(t)[i] * x.row(t)[i];
    if (squares > rules.profile.largest_scalar) comparison.overflow(t / blocks, t % blocks * block, squares);
    const double v = squares / static_cast<double>(x.cols) + rules.model.rms_norm_eps;
    const double underflow = v > 0 ? unit.underflow / v : 0;
    for (std::int64_t i = 0; i < y.cols; ++i) {
      const double value = y.row(t)[i];
      const double error = (relative + underflow) * std::abs(value) + 2 * unit.underflow;
      comparison.element(t / blocks, t % blocks * block + i, value, stored_error(rules.profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

Tensor latent_keys(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const std::int64_t turned = spec.rope.dim, still = spec.head_dim - turned, both = still + spec.value_dim();
  const Tensor product = rule.input(TapKind::attention_kv_projection);
  const Tensor shared = rule.input(TapKind::attention_kv_latent, Range{spec.kv_lora_rank, turned});
  Tensor keys(product.rows, spec.heads * spec.head_dim);
  for (std::int64_t t = 0; t < keys.rows; ++t) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      std::copy_n(product.row(t) + head * both, still, keys.row(t) + head * spec.head_dim);
      std::copy_n(shared.row(t), turned, keys.row(t) + head * spec.head_dim + still);
    }
  }
  return keys;
}

Tensor latent_values(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const std::int64_t still = spec.head_dim - spec.rope.dim, dim = spec.value_dim();
  const Tensor product = rule.input(TapKind::attention_kv_projection);
  Tensor values(product.rows, spec.heads * dim);
  for (std::int64_t t = 0; t < values.rows; ++t) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      std::copy_n(product.row(t) + head * (still + dim) + still, dim, values.row(t) + head * dim);
    }
  }
  return values;
}

Judged judge_copy(const Rule& rule, const Tensor& x) {
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) comparison.element(t, i, x.row(t)[i], 0);
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
