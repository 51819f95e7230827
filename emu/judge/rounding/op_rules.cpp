#include "emu/judge/rounding/op_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"
#include "emu/run/reduction.h"

namespace shardproof::rounding {
namespace {

using reference::Tensor;

/// Over the groups of an axis: which ranks share a node can differ between them.
ReductionPath longest_path(const Mesh& mesh, Axis axis, const ReduceOptions& options) {
  ReductionPath longest;
  for (const std::vector<int>& members : mesh.groups(axis)) {
    const ReductionPath path = reduction_path(options, members);
    longest = {std::max(longest.additions, path.additions), std::max(longest.hops, path.hops)};
    if (options.algorithm != Algorithm::hierarchical) break;
  }
  return longest;
}

/// Where the last layer, or the embedding, left the residual stream before `layer`.
TapId stream_before(int layer) {
  return layer == 0 ? TapId{.kind = TapKind::embedding} : TapId{.layer = layer - 1, .kind = TapKind::moe_residual};
}

Judged judge_embedding(const Rule& rule) {
  const Rules& rules = rule.rules();
  const WeightSpec table = weight_spec(rules.model, Weight::embedding);
  Comparison comparison = rule.comparison();
  ops::Matrix<double> row(1, table.cols);
  // One rank's partial sum is the token's row, the others' are zeros: their additions are exact.
  Profile moving = rules.profile;
  moving.compute = {};
  for (std::int64_t t = 0; t < rule.got().rows; ++t) {
    rules.weights.read_stored(table, {rules.batch.tokens()[static_cast<std::size_t>(t)], 1}, {0, table.cols},
                              rules.format, row.view());
    for (std::int64_t i = 0; i < table.cols; ++i) {
      const double error = rules.plan.parallel.tp > 1
                               ? reduction_error(moving, rules.reduce_over_tp, rules.path_over_tp, std::abs(row(0, i)))
                               : 0;
      comparison.element(t, i, row(0, i), error > 0 ? stored_error(rules.profile, row(0, i), error) : 0);
    }
  }
  return std::move(comparison).finish();
}

/// y = x weight / sqrt(v), v = sum x^2 / n + eps. v is off by gamma(n + 2) relatively, all its terms being positive: n
/// products and sums, the mean (or the rounding of eps), the addition. The inverse of its root by half as much and two
/// operations, and two products follow; one more covers what is of second order.
Judged judge_norm(const Rule& rule, const Tensor& x, Weight weight) {
  const Rules& rules = rule.rules();
  const WeightSpec spec = weight_spec(rules.model, weight, rule.tap().layer);
  ops::Matrix<double> scale(1, spec.cols);
  rules.weights.read_stored(spec, {0, 1}, {0, spec.cols}, rules.format, scale.view());
  const Tensor y = reference::rms_norm(x, scale.span(), rules.model.rms_norm_eps, reference::Arithmetic::float64);
  const Unit& unit = rules.profile.compute;
  const double relative = gamma((static_cast<double>(x.cols) + 2) / 2 + 5, unit.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < y.rows; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < x.cols; ++i) squares += x.row(t)[i] * x.row(t)[i];
    if (squares > rules.profile.largest_scalar) comparison.overflow(t, 0, squares);
    const double v = squares / static_cast<double>(x.cols) + rules.model.rms_norm_eps;
    const double underflow = v > 0 ? unit.underflow / v : 0;
    for (std::int64_t i = 0; i < y.cols; ++i) {
      const double value = y.row(t)[i];
      const double error = (relative + underflow) * std::abs(value) + 2 * unit.underflow;
      comparison.element(t, i, value, stored_error(rules.profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_product(const Rule& rule, const Tensor& x, Weight weight, bool stored = true) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  compare_product(rule, {x, {}, spec, {0, spec.cols}, stored}, comparison);
  return std::move(comparison).finish();
}

Judged judge_rotated(const Rule& rule, const Tensor& x, Weight weight) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  compare_rotated(rule, {x, {}, spec, {0, spec.cols}}, comparison);
  return std::move(comparison).finish();
}

/// A rank's part of the columns; stored where it is sent.
Judged judge_attention_partial(const Rule& rule) {
  const Range cols = rule.part_of_weight(Weight::attention_output);
  const WeightSpec spec = weight_spec(rule.rules().model, Weight::attention_output, rule.tap().layer);
  Comparison comparison = rule.comparison();
  const Tensor x = rule.input(TapKind::attention_context, cols);
  compare_product(rule, {x, {}, spec, cols, rule.rules().plan.parallel.tp > 1}, comparison);
  return std::move(comparison).finish();
}

Judged judge_sum(const Rule& rule, const Tensor& x, const Tensor& y) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double value = x.row(t)[i] + y.row(t)[i];
      comparison.element(t, i, value, stored_error(profile, value, profile.compute.relative * std::abs(value)));
    }
  }
  return std::move(comparison).finish();
}

/// The sum of the partial sums that `parts` ranks handed in.
Judged judge_reduction(const Rule& rule, TapKind partial, int parts, const ReduceOptions& options,
                       const ReductionPath& path) {
  const Profile& profile = rule.rules().profile;
  Tensor sum = rule.input(partial, 0);
  Tensor magnitude = sum;
  for (double& value : magnitude.values) value = std::abs(value);
  for (int part = 1; part < parts; ++part) {
    const Tensor more = rule.input(partial, part);
    for (std::size_t i = 0; i < sum.values.size(); ++i) {
      sum.values[i] += more.values[i];
      magnitude.values[i] += std::abs(more.values[i]);
    }
  }
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < sum.rows; ++t) {
    for (std::int64_t i = 0; i < sum.cols; ++i) {
      const double value = sum.row(t)[i];
      const double error = parts > 1 ? reduction_error(profile, options, path, magnitude.row(t)[i]) : 0;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

/// The choice must be that of the run's own logits, in their order.
Judged judge_choice(const Rule& rule) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const reference::Routing routing =
      reference::route(logits, spec.top_k, spec.norm_topk_prob, reference::Arithmetic::float64);
  Judged judged{.done = true};
  const double infinite = std::numeric_limits<double>::infinity();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const auto finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(logits.row(t), logits.row(t) + logits.cols, finite)) {
      if (judged.not_finite.empty()) judged.not_finite = "the router's logits are not finite";
      continue;
    }
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double expected = routing.choice.row(t)[slot], got = rule.got().ids(t, slot);
      if (expected == got) continue;
      const WorstElement element{infinite, 0, infinite, t, slot, expected, got};
      if (judged.wrong.empty()) judged.worst = element;
      judged.wrong.emplace(std::pair{t, std::int64_t{0}}, element);
    }
  }
  return judged;
}

/// w_i = e_i / sum e, e_i = exp(l_i - largest): the difference is rounded, then the exponential; the terms of the sum
/// are positive, so that it is off by their relative errors, each as far as it counts.
Judged judge_router_weights(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const double u = profile.compute.relative;
  const auto summed = static_cast<double>(spec.norm_topk_prob ? spec.top_k : spec.num_experts);
  const auto error_of = [&](double difference) { return std::expm1(u * (kExpUnits - difference)); };
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const double* logit = logits.row(t);
    const double largest = *std::max_element(logit, logit + logits.cols);
    double sum = 0, sum_error = 0;
    const auto add = [&](double value) {
      sum += std::exp(value - largest);
      sum_error += std::exp(value - largest) * error_of(value - largest);
    };
    if (spec.norm_topk_prob) {
      for (const std::int32_t expert : rule.choice().row(t)) add(logit[expert]);
    } else {
      for (std::int64_t expert = 0; expert < logits.cols; ++expert) add(logit[expert]);
    }
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double difference = logit[rule.choice()(t, slot)] - largest;
      const double value = std::exp(difference) / sum;
      const double relative =
          (1 + error_of(difference)) * (1 + gamma(summed + 1, u)) / std::max(0.5, 1 - sum_error / sum) - 1;
      const double error = relative * value + (summed + 1) * kExpFlush + profile.compute.underflow;
      comparison.element(t, slot, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

/// Of the slots that chose each expert, x a row for each slot or for each token.
Judged judge_expert_product(const Rule& rule, const Tensor& x, bool by_token, Weight weight, Range cols, bool stored) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  Comparison comparison = rule.comparison();
  for (int expert = 0; expert < spec.num_experts; ++expert) {
    std::vector<std::int64_t> slots = rule.slots_of(expert);
    if (slots.empty()) continue;
    Tensor rows(std::ssize(slots), x.cols);
    for (std::int64_t i = 0; i < rows.rows; ++i) {
      const std::int64_t slot = slots[static_cast<std::size_t>(i)];
      std::copy_n(x.row(by_token ? slot / spec.top_k : slot), x.cols, rows.row(i));
    }
    const WeightSpec expert_weight = weight_spec(rule.rules().model, weight, rule.tap().layer, expert);
    compare_product(rule, {rows, std::move(slots), expert_weight, cols, stored}, comparison);
  }
  return std::move(comparison).finish();
}

/// g / (1 + exp(-g)) * u: the exponential, a sum, a quotient, a product.
Judged judge_activation(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const Tensor gate = rule.input(TapKind::expert_gate), up = rule.input(TapKind::expert_up);
  const double relative = gamma(kExpUnits + 3, profile.compute.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const double g = gate.row(t)[i], u = up.row(t)[i];
      const double value = g / (1 + std::exp(-g)) * u;
      const double error =
          relative * std::abs(value) + std::abs(g * u) * kExpFlush + (1 + std::abs(u)) * profile.compute.underflow;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_combination(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const std::int64_t top_k = rule.layer().feed_forward.top_k;
  const Tensor outputs = rule.input(TapKind::expert_output), weights = rule.input(TapKind::router_weights);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < weights.rows; ++t) {
    for (std::int64_t i = 0; i < outputs.cols; ++i) {
      double value = 0, magnitude = 0;
      for (std::int64_t slot = 0; slot < top_k; ++slot) {
        const double product = weights.row(t)[slot] * outputs.row(t * top_k + slot)[i];
        value += product;
        magnitude += std::abs(product);
      }
      comparison.element(t, i, value, stored_error(profile, value, product_error(profile, top_k, magnitude)));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace

Rules::Rules(const Plan& plan_, ops::Format format_, const WeightSource& weights_, const Batch& batch_,
             const ExpectedTaps& taps_, const ReduceOptions& reduction)
    : plan(plan_),
      model(plan_.model),
      format(format_),
      profile(profile_of(format_)),
      weights(weights_),
      batch(batch_),
      taps(taps_),
      deployment(deploy(plan_.model, plan_.parallel, plan_.workload)),
      reduce_over_tp(plan_.parallel.sp ? reduce_scatter_options(reduction) : reduction),
      reduce_over_etp(reduce_scatter_options(reduction)) {
  const Mesh mesh(plan.parallel);
  path_over_tp = longest_path(mesh, Axis::tp, reduce_over_tp);
  path_over_etp = longest_path(mesh, Axis::etp, reduce_over_etp);
  for (const std::int64_t length : plan.workload.lengths) {
    for (std::int64_t position = 0; position < length; ++position) positions.push_back(position);
  }
}

Tensor Rule::stream() const {
  return input(stream_before(tap_.layer));
}

Range Rule::part_of_weight(Weight weight) const {
  const WeightSpec spec =
      weight_spec(rules_.model, weight, tap_.layer, tensor_row(weight).scope == TensorScope::expert ? 0 : -1);
  const bool over_tp = tap_row(tap_.kind).parts == TapParts::over_tp;
  for (const Layout& layout : rules_.deployment.layouts) {
    if ((over_tp ? layout.at.tp : layout.at.etp) != tap_.part) continue;
    return part_of(layout, rules_.model, spec.col_split, tap_.layer, spec.cols);
  }
  return {0, spec.cols};
}

std::vector<std::int64_t> Rule::slots_of(int expert) const {
  std::vector<std::int64_t> slots;
  const std::span<const std::int32_t> ids = choice().span();
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    if (ids[slot] == expert) slots.push_back(static_cast<std::int64_t>(slot));
  }
  return slots;
}

Comparison Rule::comparison() const {
  const TapRow& row = tap_row(tap_.kind);
  std::vector<std::int64_t> cuts{0};
  if (row.cols != Split::none) {
    for (const Layout& layout : rules_.deployment.layouts) {
      cuts.push_back(part_of(layout, rules_.model, row.cols, tap_.layer, got().cols).begin);
    }
    std::ranges::sort(cuts);
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  }
  return {rules_.profile, got(), std::move(cuts)};
}

std::vector<TapId> inputs_of(const Plan& plan, const TapId& tap) {
  const auto of = [&](TapKind kind) { return TapId{.layer = tap.layer, .kind = kind}; };
  const auto parts = [&](TapKind kind, int count) {
    std::vector<TapId> ids;
    for (int part = 0; part < count; ++part) ids.push_back({.layer = tap.layer, .kind = kind, .part = part});
    return ids;
  };
  switch (tap.kind) {
    case TapKind::embedding:
      return {};
    case TapKind::attention_norm:
      return {stream_before(tap.layer)};
    case TapKind::attention_q:
    case TapKind::attention_k:
    case TapKind::attention_v:
      return {of(TapKind::attention_norm)};
    case TapKind::attention_context:
      return {of(TapKind::attention_q), of(TapKind::attention_k), of(TapKind::attention_v)};
    case TapKind::attention_partial:
      return {of(TapKind::attention_context)};
    case TapKind::attention_output:
      return parts(TapKind::attention_partial, plan.parallel.tp);
    case TapKind::attention_residual:
      return {stream_before(tap.layer), of(TapKind::attention_output)};
    case TapKind::moe_norm:
      return {of(TapKind::attention_residual)};
    case TapKind::router_logits:
      return {of(TapKind::moe_norm)};
    case TapKind::router_choice:
      return {of(TapKind::router_logits)};
    case TapKind::router_weights:
      return {of(TapKind::router_logits), of(TapKind::router_choice)};
    case TapKind::expert_gate:
    case TapKind::expert_up:
      return {of(TapKind::moe_norm), of(TapKind::router_choice)};
    case TapKind::expert_activation:
      return {of(TapKind::expert_gate), of(TapKind::expert_up)};
    case TapKind::expert_partial:
      return {of(TapKind::expert_activation), of(TapKind::router_choice)};
    case TapKind::expert_output:
      return parts(TapKind::expert_partial, plan.parallel.etp);
    case TapKind::moe_output:
      return {of(TapKind::expert_output), of(TapKind::router_weights)};
    case TapKind::moe_residual:
      return {of(TapKind::attention_residual), of(TapKind::moe_output)};
    case TapKind::final_norm:
      return {stream_before(static_cast<int>(plan.model.layers.size()))};
    case TapKind::logits:
      return {{.kind = TapKind::final_norm}};
  }
  return {};
}

Judged judge_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap) {
  const Rule rule(rules, tensors, tap);
  switch (tap.kind) {
    case TapKind::embedding:
      return judge_embedding(rule);
    case TapKind::attention_norm:
      return judge_norm(rule, rule.stream(), Weight::attention_norm);
    case TapKind::attention_q:
      return judge_rotated(rule, rule.input(TapKind::attention_norm), Weight::attention_q);
    case TapKind::attention_k:
      return judge_rotated(rule, rule.input(TapKind::attention_norm), Weight::attention_k);
    case TapKind::attention_v:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_v);
    case TapKind::attention_context:
      return judge_attention(rule);
    case TapKind::attention_partial:
      return judge_attention_partial(rule);
    case TapKind::attention_output:
      return judge_reduction(rule, TapKind::attention_partial, rules.plan.parallel.tp, rules.reduce_over_tp,
                             rules.path_over_tp);
    case TapKind::attention_residual:
      return judge_sum(rule, rule.stream(), rule.input(TapKind::attention_output));
    case TapKind::moe_norm:
      return judge_norm(rule, rule.input(TapKind::attention_residual), Weight::moe_norm);
    case TapKind::router_logits:
      return judge_product(rule, rule.input(TapKind::moe_norm), Weight::router);
    case TapKind::router_choice:
      return judge_choice(rule);
    case TapKind::router_weights:
      return judge_router_weights(rule);
    case TapKind::expert_gate:
    case TapKind::expert_up:
      return judge_expert_product(rule, rule.input(TapKind::moe_norm), true,
                                  tap.kind == TapKind::expert_gate ? Weight::expert_gate : Weight::expert_up,
                                  {0, rules.model.hidden_size}, true);
    case TapKind::expert_activation:
      return judge_activation(rule);
    case TapKind::expert_partial: {
      const Range cols = rule.part_of_weight(Weight::expert_down);
      return judge_expert_product(rule, rule.input(TapKind::expert_activation, cols), false, Weight::expert_down, cols,
                                  rules.plan.parallel.etp > 1);
    }
    case TapKind::expert_output:
      return judge_reduction(rule, TapKind::expert_partial, rules.plan.parallel.etp, rules.reduce_over_etp,
                             rules.path_over_etp);
    case TapKind::moe_output:
      return judge_combination(rule);
    case TapKind::moe_residual:
      return judge_sum(rule, rule.input(TapKind::attention_residual), rule.input(TapKind::moe_output));
    case TapKind::final_norm:
      return judge_norm(rule, rule.input(stream_before(static_cast<int>(rules.model.layers.size()))),
                        Weight::final_norm);
    case TapKind::logits:
      return judge_product(rule, rule.input(TapId{.kind = TapKind::final_norm}), Weight::head);
  }
  return {};
}

}  // namespace shardproof::rounding
