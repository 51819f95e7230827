#include "emu/judge/rounding/op_rules.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"
#include "emu/plan/cache_share.h"
#include "emu/plan/latent_form.h"
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

Judged judge_embedding(const Rule& rule) {
  const Rules& rules = rule.rules();
  const WeightSpec table = weight_spec(rules.model, Weight::embedding);
  Comparison comparison = rule.comparison();
  ops::Matrix<double> row(1, table.cols);
  // One rank's partial sum is the token's row, the others' are zeros: their additions are exact, and so is sending the
  // row in its own format.
  const bool sent_narrower = rules.profile.kind == RoundingProfile::ours && rules.plan.parallel.tp > 1;
  Profile moving = rules.profile;
  moving.compute = {};
  for (std::int64_t t = 0; t < rule.got().rows; ++t) {
    rules.weights.read_stored(table, {rules.batch.tokens()[static_cast<std::size_t>(t)], 1}, {0, table.cols},
                              rules.format, row.view());
    for (std::int64_t i = 0; i < table.cols; ++i) {
      const double error =
          sent_narrower ? reduction_error(moving, rules.reduce_over_tp, rules.path_over_tp, std::abs(row(0, i))) : 0;
      comparison.element(t, i, row(0, i), error > 0 ? stored_error(rules.profile, row(0, i), error) : 0);
    }
  }
  return std::move(comparison).finish();
}

Judged judge_product(const Rule& rule, const Input& x, Weight weight, std::optional<Weight> bias = std::nullopt,
                     bool stored = true) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  const std::vector<double> values = bias ? vector_of(rule, *bias) : std::vector<double>();
  const double divisor = weight == Weight::head ? rule.rules().model.logits_scaling : 1;
  compare_product(rule, {x, {}, spec, {0, spec.cols}, stored, values, 0, divisor}, comparison);
  return std::move(comparison).finish();
}

Judged judge_rotated(const Rule& rule, const Input& x, Weight weight) {
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  compare_rotated(rule, {x, {}, spec, {0, spec.cols}}, comparison);
  return std::move(comparison).finish();
}

/// Whether a partial sum is rounded to the format: where it is sent, and by others wherever they have it.
bool is_stored(const Rule& rule, int parts) {
  return parts > 1 || (rule.rules().profile.kind != RoundingProfile::ours && !rule.derives());
}

/// Of a partial sum that others make without the bias, and nobody saw: every rounding of its reduction.
double spared(const Rule& rule) {
  if (!rule.derives() || rule.rules().profile.kind == RoundingProfile::ours) return 0;
  const ReductionPath& path = rule.rules().path_over_tp;
  return path.additions + path.hops + 2;
}

/// A rank's part of the columns. The first rank's has the bias.
Judged judge_partial(const Rule& rule, TapKind input, Weight weight, std::optional<Weight> bias = std::nullopt) {
  const Range cols = rule.part_of_weight(weight);
  const WeightSpec spec = weight_spec(rule.rules().model, weight, rule.tap().layer);
  Comparison comparison = rule.comparison();
  const Input x = rule.input(input, cols);
  const std::vector<double> values = bias && rule.tap().part == 0 ? vector_of(rule, *bias) : std::vector<double>();
  compare_product(rule, {x, {}, spec, cols, is_stored(rule, rule.rules().plan.parallel.tp), values, spared(rule)},
                  comparison);
  return std::move(comparison).finish();
}

/// The sum of the partial sums that `parts` ranks handed in. Where others combine what experts make before they reduce
/// it, what each rank has is rounded, not the sum: that much more of an expert's output that nobody saw.
Judged judge_reduction(const Rule& rule, TapKind partial, int parts, const ReduceOptions& options,
                       const ReductionPath& path, bool stored = true) {
  const Profile& profile = rule.rules().profile;
  Input sum = rule.input(partial, 0);
  Tensor magnitude = sum;
  for (double& value : magnitude.values) value = std::abs(value);
  for (int part = 1; part < parts; ++part) {
    const Input more = rule.input(partial, part);
    if (more.derived()) sum.errors.resize(sum.values.size());
    for (std::size_t i = 0; i < sum.values.size(); ++i) {
      sum.values[i] += more.values[i];
      magnitude.values[i] += std::abs(more.values[i]);
      if (more.derived()) sum.errors[i] += more.errors[i];
    }
  }
  const bool combined_first =
      rule.derives() && rule.tap().kind == TapKind::expert_output && profile.kind != RoundingProfile::ours;
  const double combining =
      combined_first ? gamma(static_cast<double>(rule.layer().feed_forward.top_k), profile.store.relative) : 0;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < sum.rows; ++t) {
    for (std::int64_t i = 0; i < sum.cols; ++i) {
      const double value = sum.row(t)[i], inherited = sum.error(t, i), whole = magnitude.row(t)[i] + inherited;
      const double error = inherited + (parts > 1 ? reduction_error(profile, options, path, whole) : 0) +
                           combining * (whole - std::abs(value));
      comparison.element(t, i, value, stored ? stored_error(profile, value, error) : error);
    }
  }
  return std::move(comparison).finish();
}

/// Of the slots that chose each expert, x a row for each slot or for each token.
Judged judge_expert_product(const Rule& rule, const Input& x, bool by_token, Weight weight, Weight bias, Range cols,
                            bool stored) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  Comparison comparison = rule.comparison();
  std::vector<std::vector<std::int64_t>> slots_of = rule.slots_by_expert();
  for (int expert = 0; expert < spec.num_experts; ++expert) {
    std::vector<std::int64_t>& slots = slots_of[static_cast<std::size_t>(expert)];
    if (slots.empty()) continue;
    Input rows(std::ssize(slots), x.cols);
    if (x.derived()) rows.errors.resize(rows.values.size());
    for (std::int64_t i = 0; i < rows.rows; ++i) {
      const std::int64_t slot = slots[static_cast<std::size_t>(i)], from = by_token ? slot / spec.top_k : slot;
      std::copy_n(x.row(from), x.cols, rows.row(i));
      if (x.derived()) std::copy_n(x.errors.begin() + from * x.cols, x.cols, rows.errors.begin() + i * x.cols);
    }
    const WeightSpec expert_weight = weight_spec(rule.rules().model, weight, rule.tap().layer, expert);
    // Of partial sums, the first rank's has it.
    const std::vector<double> values = rule.tap().part <= 0 ? vector_of(rule, bias, expert) : std::vector<double>();
    compare_product(rule, {rows, std::move(slots), expert_weight, cols, stored, values}, comparison);
  }
  return std::move(comparison).finish();
}

/// Whether a sum over experts has a token's choice in it: one rank's over ep has those that it serves.
bool is_summed(const Rule& rule, std::int64_t token, std::int64_t slot) {
  const TapId& tap = rule.tap();
  if (tap.part < 0) return true;
  const Rules& rules = rule.rules();
  return serving_ep(rules.model, rules.deployment, tap.layer, token, rule.choice()(token, slot)) == tap.part;
}

Judged judge_combination(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const std::int64_t top_k = spec.top_k;
  const Input outputs = rule.input(TapKind::expert_output), weights = rule.input(TapKind::router_weights);
  Comparison comparison = rule.comparison();
  std::vector<bool> summed(static_cast<std::size_t>(top_k));
  for (std::int64_t t = 0; t < weights.rows; ++t) {
    for (std::int64_t slot = 0; slot < top_k; ++slot) summed[static_cast<std::size_t>(slot)] = is_summed(rule, t, slot);
    for (std::int64_t i = 0; i < outputs.cols; ++i) {
      double value = 0, magnitude = 0, inherited = 0;
      for (std::int64_t slot = 0; slot < top_k; ++slot) {
        if (!summed[static_cast<std::size_t>(slot)]) continue;
        const double weight = weights.row(t)[slot], output = outputs.row(t * top_k + slot)[i];
        const double of_output = outputs.error(t * top_k + slot, i);
        value += weight * output;
        magnitude += std::abs(weight * output);
        inherited += std::abs(weight) * of_output + weights.error(t, slot) * (std::abs(output) + of_output);
      }
      // Of elementary ops: a product and a sum for each choice, and the factor, if they are scaled only now.
      const double steps = static_cast<double>(top_k) + (spec.routed_scaling_factor != 1 ? 1 : 0);
      const double error = inherited + product_error(profile, top_k, magnitude + inherited);
      comparison.element(t, i, value,
                         stored_error(profile, value, step_error(profile, steps, magnitude + inherited, error)));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace

Rules::Rules(const Plan& plan_, ops::Format format_, const WeightSource& weights_, const Batch& batch_,
             const ExpectedTaps& taps_, const ReduceOptions& reduction, RoundingProfile profile_)
    : plan(plan_),
      model(plan_.model),
      format(format_),
      profile(profile_of(format_, profile_)),
      weights(weights_),
      batch(batch_),
      taps(taps_),
      deployment(deploy(plan_.model, plan_.parallel, plan_.workload)),
      reduce_over_tp(plan_.parallel.sp ? reduce_scatter_options(reduction) : reduction),
      reduce_over_etp(plan_.parallel.routes_alike() ? reduction : reduce_scatter_options(reduction)),
      reduce_over_ep(reduce_over_etp),
      scalars_over_tp(scalar_reduction(reduction)) {
  const Mesh mesh(plan.parallel);
  path_over_tp = longest_path(mesh, Axis::tp, reduce_over_tp);
  path_over_etp = longest_path(mesh, Axis::etp, reduce_over_etp);
  path_over_ep = longest_path(mesh, Axis::ep, reduce_over_ep);
  path_of_scalars = longest_path(mesh, Axis::tp, scalars_over_tp);
  if (profile_ != RoundingProfile::ours) {
    // In whatever order, and rounded after every addition and wherever it is sent.
    for (ReduceOptions* options : {&reduce_over_tp, &reduce_over_etp, &reduce_over_ep}) {
      options->wire = options->accumulate = rounding_of(format);
    }
    path_over_tp = path_of_scalars = {plan.parallel.tp - 1, plan.parallel.tp - 1};
    path_over_etp = {plan.parallel.etp - 1, plan.parallel.etp - 1};
    path_over_ep = {plan.parallel.ep - 1, plan.parallel.ep - 1};
  }
  for (const std::int64_t length : plan.workload.lengths) {
    for (std::int64_t position = 0; position < length; ++position) positions.push_back(position);
  }
  absorbed = absorbed_rows(plan);
  const CacheShare share = cache_share(plan.parallel, {});
  for (std::int64_t row = 0; row < std::ssize(positions); ++row) {
    part_of.push_back(plan.parallel.in_ring() ? deployment.tokens.home(row).at.cp / plan.parallel.heads_dealt()
                                              : share.owner_of(positions[static_cast<std::size_t>(row)]));
  }
}

std::vector<double> vector_in(const Rule& rule, Weight weight, int expert, ops::Format format) {
  const Rules& rules = rule.rules();
  if (!has_weight(rules.model, weight, rule.tap().layer)) return {};
  const WeightSpec spec = weight_spec(rules.model, weight, rule.tap().layer, expert);
  std::vector<double> values(static_cast<std::size_t>(spec.cols));
  rules.weights.read_stored(spec, {0, 1}, {0, spec.cols}, format, ops::MatrixView<double>{values.data(), 1, spec.cols});
  return values;
}

std::vector<double> vector_of(const Rule& rule, Weight weight, int expert) {
  return vector_in(rule, weight, expert, rule.rules().format);
}

Input Rule::stream() const {
  return input(stream_before(rules_.model, tap_.layer));
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

std::vector<std::vector<std::int64_t>> Rule::slots_by_expert() const {
  std::vector<std::vector<std::int64_t>> slots(static_cast<std::size_t>(layer().feed_forward.num_experts));
  const std::span<const std::int32_t> ids = choice().span();
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    slots[static_cast<std::size_t>(ids[slot])].push_back(static_cast<std::int64_t>(slot));
  }
  return slots;
}

namespace {

/// What the tap's values are clamped to; 0: to nothing.
double clipped_to(const TapId& tap, const ModelConfig& model) {
  const bool clipped = tap.kind == TapKind::attention_q_normed || tap.kind == TapKind::attention_k_normed ||
                       tap.kind == TapKind::attention_v;
  return clipped ? model.layers[tap.layer].attention.clip_qkv : 0;
}

}  // namespace

Comparison Rule::comparison() const {
  if (made_ != nullptr) return Comparison(rules_.profile, *made_).held_within(clipped_to(tap_, rules_.model));
  const TapRow& row = tap_row(tap_.kind);
  std::vector<std::int64_t> cuts{0};
  if (row.cols != Split::none) {
    for (const Layout& layout : rules_.deployment.layouts) {
      cuts.push_back(part_of(layout, rules_.model, row.cols, tap_.layer, got().cols).begin);
    }
    std::ranges::sort(cuts);
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  }
  return Comparison(rules_.profile, got(), std::move(cuts)).held_within(clipped_to(tap_, rules_.model));
}

namespace {

Judged apply(const Rule& rule) {
  const Rules& rules = rule.rules();
  const TapId& tap = rule.tap();
  const std::int64_t hidden = rules.model.hidden_size;
  const auto attention = [&]() -> const AttentionSpec& { return rule.layer().attention; };
  switch (tap.kind) {
    case TapKind::embedding:
      return judge_embedding(rule);
    case TapKind::embedding_scaled:
      return judge_scaled(rule, rule.input(TapId{.kind = TapKind::embedding}), rules.model.embedding_multiplier);
    case TapKind::attention_norm:
      return judge_stream_norm(rule, rule.stream(), Weight::attention_norm, Weight::attention_norm_bias);
    case TapKind::attention_q_latent:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_q_latent,
                           Weight::attention_q_latent_bias);
    case TapKind::attention_q_latent_norm:
      return judge_norm(rule, rule.input(TapKind::attention_q_latent), Weight::attention_q_latent_norm,
                        attention().q_lora_rank);
    case TapKind::attention_q_projection:
      return judge_product(rule, rule.input(query_source(rule.layer())), Weight::attention_q, Weight::attention_q_bias);
    case TapKind::attention_squares_partial:
      return judge_squares(rule);
    case TapKind::attention_squares:
      return judge_reduction(rule, TapKind::attention_squares_partial, rules.plan.parallel.tp, rules.scalars_over_tp,
                             rules.path_of_scalars, false);
    case TapKind::attention_q_normed:
      return judge_query_key_norm(rule, TapKind::attention_q_projection, Weight::attention_q_norm);
    case TapKind::attention_kv_latent:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_kv_latent,
                           Weight::attention_kv_latent_bias);
    case TapKind::attention_kv_latent_norm:
      return judge_norm(rule, rule.input(TapKind::attention_kv_latent, Range{0, attention().kv_lora_rank}),
                        Weight::attention_kv_latent_norm, attention().kv_lora_rank);
    case TapKind::attention_kv_projection:
      return judge_product(rule, rule.input(TapKind::attention_kv_latent_norm), Weight::attention_kv);
    case TapKind::attention_k_projection:
      return judge_product(rule, rule.input(TapKind::attention_norm), Weight::attention_k, Weight::attention_k_bias);
    case TapKind::attention_k_normed:
      return judge_query_key_norm(rule, TapKind::attention_k_projection, Weight::attention_k_norm);
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
    case TapKind::attention_latent_part:
      return judge_ring_context(rule);
    case TapKind::attention_ring_lse:
    case TapKind::attention_latent_lse:
      return judge_ring_lse(rule);
    case TapKind::attention_q_absorbed:
      return judge_absorbed_queries(rule);
    case TapKind::attention_latent_context:
      return rules.plan.parallel.latent_parts() > 0 ? judge_ring_merge(rule) : judge_latent_context(rule);
    case TapKind::attention_context:
      if (attention().latent() && !rules.absorbed.empty()) return judge_context_in_forms(rule);
      return rules.plan.parallel.key_parts(attention().latent()) > 0 ? judge_ring_merge(rule) : judge_attention(rule);
    case TapKind::attention_partial:
      return judge_partial(rule, TapKind::attention_context, Weight::attention_output, Weight::attention_output_bias);
    case TapKind::attention_output:
      return judge_reduction(rule, TapKind::attention_partial, rules.plan.parallel.tp, rules.reduce_over_tp,
                             rules.path_over_tp);
    case TapKind::attention_residual:
      return judge_addition_to_stream(rule, rule.stream(), rule.input(TapKind::attention_output));
    case TapKind::moe_norm:
      return judge_stream_norm(rule, rule.input(TapKind::attention_residual), Weight::moe_norm, Weight::moe_norm_bias);
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
                                  Weight::expert_down_bias, cols, is_stored(rule, rules.plan.parallel.etp));
    }
    case TapKind::expert_output:
      return judge_reduction(rule, TapKind::expert_partial, rules.plan.parallel.etp, rules.reduce_over_etp,
                             rules.path_over_etp);
    case TapKind::moe_partial: {
      Judged judged = judge_combination(rule);
      if (judged.vacuous == "zero") judged.vacuous.clear();  // of tokens that no expert of the rank serves
      return judged;
    }
    case TapKind::moe_output:
      if (!rule.expects({.layer = tap.layer, .kind = TapKind::moe_partial, .part = 0})) return judge_combination(rule);
      return judge_reduction(rule, TapKind::moe_partial, rules.plan.parallel.ep, rules.reduce_over_ep,
                             rules.path_over_ep);
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
      return judge_addition_to_stream(rule, rule.input(TapKind::attention_residual),
                                      rule.input(feed_forward_addend(rule.layer())));
    case TapKind::final_norm:
      return judge_stream_norm(rule,
                               rule.input(stream_before(rules.model, static_cast<int>(rules.model.layers.size()))),
                               Weight::final_norm, Weight::final_norm_bias);
    case TapKind::logits:
      return judge_product(rule, rule.input(TapId{.kind = TapKind::final_norm}), Weight::head, Weight::head_bias);
  }
  return {};
}

}  // namespace

Judged judge_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap) {
  return apply(Rule(rules, tensors, tap));
}

std::optional<RunTensor> derive_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap) {
  // The parts of a ring are the program's own: without them nothing is said of what is merged.
  if (tap_row(tap.kind).parts == TapParts::over_keys) return std::nullopt;
  const ExpectedTap& shape = rules.taps.all()[static_cast<std::size_t>(rules.taps.find(tap))];
  RunTensor made{.rows = shape.rows, .cols = shape.cols};
  if (tap.kind == TapKind::router_choice) {
    std::optional<ops::Matrix<std::int32_t>> choice = clear_choice(Rule(rules, tensors, tap));
    if (!choice) return std::nullopt;
    made.ids = std::move(*choice);
    return made;
  }
  made.doubles = ops::Matrix<double>(shape.rows, shape.cols);
  made.errors = ops::Matrix<double>(shape.rows, shape.cols);
  if (!apply(Rule(rules, tensors, tap, made)).not_finite.empty()) return std::nullopt;
  return made;
}

}  // namespace shardproof::rounding
