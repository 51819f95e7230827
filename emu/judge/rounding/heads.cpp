#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

using reference::Tensor;

namespace {

/// Root mean square of a row's errors.
double inherited_norm(const Input& x, std::int64_t row) {
  double squares = 0;
  for (std::int64_t i = 0; x.derived() && i < x.cols; ++i) squares += x.error(row, i) * x.error(row, i);
  return std::sqrt(squares / static_cast<double>(x.cols));
}

/// `count` elements of a row, from one place to another, with their errors.
void copy_elements(const Input& from, std::int64_t row, std::int64_t begin, std::int64_t count, Input& to,
                   std::int64_t to_begin) {
  std::copy_n(from.row(row) + begin, count, to.row(row) + to_begin);
  if (!from.derived()) return;
  to.errors.resize(to.values.size());
  std::copy_n(from.errors.begin() + row * from.cols + begin, count, to.errors.begin() + row * to.cols + to_begin);
}

}  // namespace

/// y = x weight / sqrt(v), v = sum x^2 / n + eps. v is off by gamma(n + 2) relatively, all its terms being positive: n
/// products and sums, the mean (or the rounding of eps), the addition. The inverse of its root by half as much and two
/// operations, and two products follow; one more covers what is of second order. Eager, what is normed is stored before
/// it meets the weight; others may take an inverse root within 2 units in the last place. Of an x that is off by e, r =
/// sqrt(v) moves by E = sqrt(sum e^2 / n) at most, hence y by |weight| (e / (r - E) + |x| E / (r (r - E))).
Judged judge_norm(const Rule& rule, const Input& whole, Weight weight, std::int64_t block) {
  const Rules& rules = rule.rules();
  const WeightSpec spec = weight_spec(rules.model, weight, rule.tap().layer);
  ops::Matrix<double> scale(1, spec.cols);
  rules.weights.read_stored(spec, {0, 1}, {0, spec.cols}, rules.format, scale.view());
  Input x = whole;
  x.rows = whole.rows * whole.cols / block;
  x.cols = block;
  const std::int64_t blocks = whole.cols / block;
  const Tensor y = reference::rms_norm(x, scale.span(), rules.model.rms_norm_eps, reference::Arithmetic::float64);
  const Unit& unit = rules.profile.compute;
  const Profile& profile = rules.profile;
  const double root = profile.kind == RoundingProfile::ours ? 0 : 4;
  const double relative = gamma((static_cast<double>(x.cols) + 2) / 2 + 5 + root, unit.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < y.rows; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < x.cols; ++i) squares += x.row(t)[i] * x.row(t)[i];
    if (squares > rules.profile.largest_scalar) comparison.overflow(t / blocks, t % blocks * block, squares);
    const double v = squares / static_cast<double>(x.cols) + rules.model.rms_norm_eps;
    const double underflow = v > 0 ? unit.underflow / v : 0;
    const double r = std::sqrt(v), moved = inherited_norm(x, t);
    for (std::int64_t i = 0; i < y.cols; ++i) {
      const double value = y.row(t)[i], weight_of = std::abs(scale(0, i));
      const double inherited = moved < r ? weight_of * (x.error(t, i) + std::abs(x.row(t)[i]) * moved / r) / (r - moved)
                               : moved > 0 ? std::numeric_limits<double>::infinity()
                                           : 0;
      const double error = inherited + (relative + underflow) * (std::abs(value) + inherited) + 2 * unit.underflow;
      const double stepped = step_error(profile, 1, value, error) + profile.step.underflow * weight_of;
      comparison.element(t / blocks, t % blocks * block + i, value, stored_error(profile, value, stepped));
    }
  }
  return std::move(comparison).finish();
}

Input latent_keys(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const std::int64_t turned = spec.rope.dim, still = spec.head_dim - turned, both = still + spec.value_dim();
  const Input product = rule.input(TapKind::attention_kv_projection);
  const Input shared = rule.input(TapKind::attention_kv_latent, Range{spec.kv_lora_rank, turned});
  Input keys(product.rows, spec.heads * spec.head_dim);
  for (std::int64_t t = 0; t < keys.rows; ++t) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      copy_elements(product, t, head * both, still, keys, head * spec.head_dim);
      copy_elements(shared, t, 0, turned, keys, head * spec.head_dim + still);
    }
  }
  return keys;
}

Input latent_values(const Rule& rule) {
  const AttentionSpec& spec = rule.layer().attention;
  const std::int64_t still = spec.head_dim - spec.rope.dim, dim = spec.value_dim();
  const Input product = rule.input(TapKind::attention_kv_projection);
  Input values(product.rows, spec.heads * dim);
  for (std::int64_t t = 0; t < values.rows; ++t) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      copy_elements(product, t, head * (still + dim) + still, dim, values, head * dim);
    }
  }
  return values;
}

Judged judge_copy(const Rule& rule, const Input& x) {
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) comparison.element(t, i, x.row(t)[i], x.error(t, i));
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
