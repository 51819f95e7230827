#include "emu/judge/rounding/op_rules.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
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

/// What queries are projected from.
TapKind query_source(const LayerSpec& layer) {
  return layer.attention.q_lora_rank > 0 ? TapKind::attention_q_latent_norm : TapKind::attention_norm;
}

/// What is rotated: norms, a product with its bias, or, held together with its product, what that is of.
TapKind before_rotation(const ModelConfig& model, const TapId& tap, TapKind projection, TapKind normed) {
  const auto has = [&](TapKind kind) { return tap_width(model, {.layer = tap.layer, .kind = kind}) > 0; };
  return has(normed) ? normed : has(projection) ? projection : TapKind::attention_norm;
}

/// What the experts are chosen by.
TapKind choice_source(const LayerSpec& layer) {
  return layer.feed_forward.scoring == Scoring::sigmoid ? TapKind::router_scores : TapKind::router_logits;
}

/// What is added to the experts' output.
TapKind shared_addend(const LayerSpec& layer) {
  return layer.feed_forward.shared_gate ? TapKind::shared_output : TapKind::mlp_output;
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

Judged judge_product(const Rule& rule, const Tensor& x, Weight weight, std::optional<Weight> bias = std::nullopt,
                     bool stored = true) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  const std::vector<double> values = bias ? vector_of(rule, *bias) : std::vector<double>();
  compare_product(rule, {x, {}, spec, {0, spec.cols}, stored, values}, comparison);
  return std::move(comparison).finish();
}

Judged judge_rotated(const Rule& rule, const Tensor& x, Weight weight) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  compare_rotated(rule, {x, {}, spec, {0, spec.cols}}, comparison);
  return std::move(comparison).finish();
}

/// A rank's part of the columns; stored where it is sent. The first rank's has the bias.
Judged judge_partial(const Rule& rule, TapKind input, Weight weight, std::optional<Weight> bias = std::nullopt) {
  const Range cols = rule.part_of_weight(weight);
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  const Tensor x = rule.input(input, cols);
  const std::vector<double> values = bias && rule.tap().part == 0 ? vector_of(rule, *bias) : std::vector<double>();
  compare_product(rule, {x, {}, spec, cols, rule.rules().plan.parallel.tp > 1, values}, comparison);
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

/// Of the slots that chose each expert, x a row for each slot or for each token.
Judged judge_expert_product(const Rule& rule, const Tensor& x, bool by_token, Weight weight, Weight bias, Range cols,
                            bool stored) {
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
    // Of partial sums, the first rank's has it.
    const std::vector<double> values = rule.tap().part <= 0 ? vector_of(rule, bias, expert) : std::vector<double>();
    compare_product(rule, {rows, std::move(slots), expert_weight, cols, stored, values}, comparison);
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
  for (std::int64_t row = 0; plan.parallel.in_ring() && row < std::ssize(positions); ++row) {
    cp_of.push_back(deployment.tokens.home(row).at.cp);
  }
}

std::vector<double> vector_of(const Rule& rule, Weight weight, int expert) {
  const Rules& rules = rule.rules();
  if (!has_weight(rules.model, weight, rule.tap().layer)) return {};
  const WeightSpec spec = weight_spec(rules.model, weight, rule.tap().layer, expert);
  std::vector<double> values(static_cast<std::size_t>(spec.cols));
  rules.weights.read_stored(spec, {0, 1}, {0, spec.cols}, rules.format,
                            ops::MatrixView<double>{values.data(), 1, spec.cols});
  return values;
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
    case TapKind::attention_q_latent:
    case TapKind::attention_kv_latent:
    case TapKind::attention_k_projection:
      return {of(TapKind::attention_norm)};
    case TapKind::attention_q_latent_norm:
      return {of(TapKind::attention_q_latent)};
    case TapKind::attention_kv_latent_norm:
      return {of(TapKind::attention_kv_latent)};
    case TapKind::attention_kv_projection:
      return {of(TapKind::attention_kv_latent_norm)};
    case TapKind::attention_q_projection:
      return {of(query_source(plan.model.layers[tap.layer]))};
    case TapKind::attention_q_normed:
      return {of(TapKind::attention_q_projection)};
    case TapKind::attention_k_normed:
      return {of(TapKind::attention_k_projection)};
    case TapKind::attention_q:
      return {of(before_rotation(plan.model, tap, TapKind::attention_q_projection, TapKind::attention_q_normed))};
    case TapKind::attention_k:
      if (plan.model.layers[tap.layer].attention.latent()) {
        return {of(TapKind::attention_kv_projection), of(TapKind::attention_kv_latent)};
      }
      return {of(before_rotation(plan.model, tap, TapKind::attention_k_projection, TapKind::attention_k_normed))};
    case TapKind::attention_v:
      return {of(plan.model.layers[tap.layer].attention.latent() ? TapKind::attention_kv_projection
                                                                 : TapKind::attention_norm)};
    case TapKind::attention_ring_context:
    case TapKind::attention_ring_lse:
      return {of(TapKind::attention_q), of(TapKind::attention_k), of(TapKind::attention_v)};
    case TapKind::attention_context: {
      if (!plan.parallel.in_ring()) {
        return {of(TapKind::attention_q), of(TapKind::attention_k), of(TapKind::attention_v)};
      }
      std::vector<TapId> ids = parts(TapKind::attention_ring_context, plan.parallel.cp);
      std::ranges::copy(parts(TapKind::attention_ring_lse, plan.parallel.cp), std::back_inserter(ids));
      return ids;
    }
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
    case TapKind::router_scores:
      return {of(TapKind::router_logits)};
    case TapKind::router_choice:
      return {of(choice_source(plan.model.layers[tap.layer]))};
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
    case TapKind::mlp_gate:
    case TapKind::mlp_up:
    case TapKind::shared_gate:
      return {of(TapKind::moe_norm)};
    case TapKind::mlp_activation:
      return {of(TapKind::mlp_gate), of(TapKind::mlp_up)};
    case TapKind::mlp_partial:
      return {of(TapKind::mlp_activation)};
    case TapKind::mlp_output:
      return parts(TapKind::mlp_partial, plan.parallel.tp);
    case TapKind::shared_output:
      return {of(TapKind::mlp_output), of(TapKind::shared_gate)};
    case TapKind::moe_sum:
      return {of(TapKind::moe_output), of(shared_addend(plan.model.layers[tap.layer]))};
    case TapKind::moe_residual:
      return {of(TapKind::attention_residual), of(feed_forward_addend(plan.model.layers[tap.layer]))};
    case TapKind::final_norm:
      return {stream_before(static_cast<int>(plan.model.layers.size()))};
    case TapKind::logits:
      return {{.kind = TapKind::final_norm}};
  }
  return {};
}

Judged judge_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap) {
  const Rule rule(rules, tensors, tap);
  const std::int64_t hidden = rules.model.hidden_size;
  const auto attention = [&]() -> const AttentionSpec& { return rule.layer().attention; };
  switch (tap.kind) {
    case TapKind::embedding:
      return judge_embedding(rule);
    case TapKind::attention_norm:
      return judge_norm(rule, rule.stream(), Weight::attention_norm, hidden);
    case TapKind::attention_q_latent:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_q_latent);
    case TapKind::attention_q_latent_norm:
      return judge_norm(rule, rule.input(TapKind::attention_q_latent), Weight::attention_q_latent_norm,
                        attention().q_lora_rank);
    case TapKind::attention_q_projection:
      return judge_product(rule, rule.input(query_source(rule.layer())), Weight::attention_q, Weight::attention_q_bias);
    case TapKind::attention_q_normed:
      return judge_norm(rule, rule.input(TapKind::attention_q_projection), Weight::attention_q_norm,
                        attention().head_dim);
    case TapKind::attention_kv_latent:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_kv_latent);
    case TapKind::attention_kv_latent_norm:
      return judge_norm(rule, rule.input(TapKind::attention_kv_latent, Range{0, attention().kv_lora_rank}),
                        Weight::attention_kv_latent_norm, attention().kv_lora_rank);
    case TapKind::attention_kv_projection:
      return judge_product(rule, rule.input(TapKind::attention_kv_latent_norm), Weight::attention_kv);
    case TapKind::attention_k_projection:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_k, Weight::attention_k_bias);
    case TapKind::attention_k_normed:
      return judge_norm(rule, rule.input(TapKind::attention_k_projection), Weight::attention_k_norm,
                        attention().head_dim);
    case TapKind::attention_q: {
      const TapKind before =
          before_rotation(rules.model, tap, TapKind::attention_q_projection, TapKind::attention_q_normed);
      if (before != TapKind::attention_norm) return judge_rotation(rule, rule.input(before));
      return judge_rotated(rule, rule.input(TapKind::attention_norm), Weight::attention_q);
    }
    case TapKind::attention_k: {
      if (attention().latent()) return judge_rotation(rule, latent_keys(rule));
      const TapKind before =
          before_rotation(rules.model, tap, TapKind::attention_k_projection, TapKind::attention_k_normed);
      if (before != TapKind::attention_norm) return judge_rotation(rule, rule.input(before));
      return judge_rotated(rule, rule.input(TapKind::attention_norm), Weight::attention_k);
    }
    case TapKind::attention_v:
      if (attention().latent()) return judge_copy(rule, latent_values(rule));
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_v, Weight::attention_v_bias);
    case TapKind::attention_ring_context:
      return judge_ring_context(rule);
    case TapKind::attention_ring_lse:
      return judge_ring_lse(rule);
    case TapKind::attention_context:
      return rules.plan.parallel.in_ring() ? judge_ring_merge(rule) : judge_attention(rule);
    case TapKind::attention_partial:
      return judge_partial(rule, TapKind::attention_context, Weight::attention_output, Weight::attention_output_bias);
    case TapKind::attention_output:
      return judge_reduction(rule, TapKind::attention_partial, rules.plan.parallel.tp, rules.reduce_over_tp,
                             rules.path_over_tp);
    case TapKind::attention_residual:
      return judge_sum(rule, rule.stream(), rule.input(TapKind::attention_output));
    case TapKind::moe_norm:
      return judge_norm(rule, rule.input(TapKind::attention_residual), Weight::moe_norm, hidden);
    case TapKind::router_logits:
      return judge_product(rule, rule.input(TapKind::moe_norm), Weight::router, Weight::router_bias);
    case TapKind::router_scores:
      return judge_router_scores(rule);
    case TapKind::router_choice:
      return judge_choice(rule);
    case TapKind::router_weights:
      return judge_router_weights(rule);
    case TapKind::expert_gate:
    case TapKind::expert_up:
      return judge_expert_product(rule, rule.input(TapKind::moe_norm), true,
                                  tap.kind == TapKind::expert_gate ? Weight::expert_gate : Weight::expert_up,
                                  tap.kind == TapKind::expert_gate ? Weight::expert_gate_bias : Weight::expert_up_bias,
                                  {0, hidden}, true);
    case TapKind::expert_activation:
      return judge_activation(rule, rule.input(TapKind::expert_gate), rule.input(TapKind::expert_up),
                              rule.layer().feed_forward.swiglu_limit);
    case TapKind::expert_partial: {
      const Range cols = rule.part_of_weight(Weight::expert_down);
      return judge_expert_product(rule, rule.input(TapKind::expert_activation, cols), false, Weight::expert_down,
                                  Weight::expert_down_bias, cols, rules.plan.parallel.etp > 1);
    }
    case TapKind::expert_output:
      return judge_reduction(rule, TapKind::expert_partial, rules.plan.parallel.etp, rules.reduce_over_etp,
                             rules.path_over_etp);
    case TapKind::moe_output:
      return judge_combination(rule);
    case TapKind::mlp_gate:
      return judge_product(rule, rule.input(TapKind::moe_norm), Weight::mlp_gate);
    case TapKind::mlp_up:
      return judge_product(rule, rule.input(TapKind::moe_norm), Weight::mlp_up);
    case TapKind::mlp_activation:
      return judge_activation(rule, rule.input(TapKind::mlp_gate), rule.input(TapKind::mlp_up), 0);
    case TapKind::mlp_partial:
      return judge_partial(rule, TapKind::mlp_activation, Weight::mlp_down);
    case TapKind::mlp_output:
      return judge_reduction(rule, TapKind::mlp_partial, rules.plan.parallel.tp, rules.reduce_over_tp,
                             rules.path_over_tp);
    case TapKind::shared_gate:
      return judge_product(rule, rule.input(TapKind::moe_norm), Weight::shared_gate);
    case TapKind::shared_output:
      return judge_gated(rule, rule.input(TapKind::mlp_output), rule.input(TapKind::shared_gate));
    case TapKind::moe_sum:
      return judge_sum(rule, rule.input(TapKind::moe_output), rule.input(shared_addend(rule.layer())));
    case TapKind::moe_residual:
      return judge_sum(rule, rule.input(TapKind::attention_residual), rule.input(feed_forward_addend(rule.layer())));
    case TapKind::final_norm:
      return judge_norm(rule, rule.input(stream_before(static_cast<int>(rules.model.layers.size()))),
                        Weight::final_norm, hidden);
    case TapKind::logits:
      return judge_product(rule, rule.input(TapId{.kind = TapKind::final_norm}), Weight::head);
  }
  return {};
}

}  // namespace shardproof::rounding
