// The null hypothesis: nothing is wrong with who held what. Right inputs through the program's own op, alone and on one
// rank, already give the wrong values; then the op differs from the reference, and every hypothesis about the sharding
// that gives the same values proves nothing.
#include <fmt/format.h>

#include <algorithm>

#include "emu/diagnose/internal/wrong_tap.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/router.h"

namespace shardproof::diagnosis {

std::vector<double> attended(const WrongTap& wrong, const WrongRow& row, std::int64_t wider) {
  const AttentionSpec& spec = wrong.model.plan().model.layers[wrong.layer].attention;
  const std::int64_t position = wrong.model.tokens().position(row.row);
  std::vector<double> values;
  for (std::int64_t head = row.col / spec.value_dim(); head < (row.col + std::ssize(row.got)) / spec.value_dim();
       ++head) {
    const std::vector<double> one = wrong.model.attend(wrong.layer, row.row, {row.row - position, position + 1},
                                                       {head, head / (spec.heads / spec.kv_heads), -1, wider});
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

std::vector<double> routed(const WrongTap& wrong, const WrongRow& row,
                           const std::function<void(ops::RouteOptions<double>&)>& edit) {
  const FeedForwardSpec& spec = wrong.model.plan().model.layers[wrong.layer].feed_forward;
  const auto logits = wrong.model.row(wrong.model.tap(wrong.layer, TapKind::router_logits), row.row);
  const ops::MatrixView<const double> scores{logits.data(), 1, std::ssize(logits)};
  std::vector<std::int32_t> ids(static_cast<std::size_t>(spec.top_k));
  std::vector<double> weights(ids.size()), by(logits.size());
  ops::RouteOptions<double> options{.top_k = spec.top_k,
                                    .normalise = spec.norm_topk_prob,
                                    .sigmoid = spec.scoring == Scoring::sigmoid,
                                    .groups = spec.groups,
                                    .top_groups = spec.top_groups,
                                    .scale = spec.routed_scaling_factor,
                                    .sparsemixer = spec.scoring == Scoring::sparsemixer,
                                    .jitter = spec.router_jitter};
  std::vector<double> bias;
  if (spec.selection_bias) {
    const WeightSpec weight = weight_spec(wrong.model.plan().model, Weight::router_selection_bias, wrong.layer);
    const LoadedWeight<double> loaded = wrong.model.whole(weight);
    bias.assign(loaded.view().row(0).begin(), loaded.view().row(0).end());
    options.selection_bias = bias;
  }
  if (edit) edit(options);
  const ops::MatrixView<double> by_row(by.data(), 1, std::ssize(by));
  ops::selection_scores<double>(scores, options, wrong.model.format(), by_row);
  if (wrong.kind == TapKind::router_scores) return by;
  const ops::MatrixView<std::int32_t> ids_row(ids.data(), 1, spec.top_k);
  ops::choose_experts<double>(by_row, options, ids_row);
  ops::route_weights<double>(scores, ids_row, options, wrong.model.format(), {weights.data(), 1, spec.top_k});
  return wrong.kind == TapKind::router_choice ? std::vector<double>(ids.begin(), ids.end()) : weights;
}

namespace {

using Row = std::vector<double>;

Row columns(Row whole, const WrongRow& row) {
  const auto first = whole.begin() + row.col;
  return {first, first + std::ssize(row.got)};
}

Row sum_of_parts(Recompute& model, int members, const std::function<Row(int)>& part) {
  Row sum;
  for (int m = 0; m < members; ++m) {
    const Row one = part(m);
    if (sum.empty()) sum.resize(one.size(), 0.0);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += one[i];
  }
  model.finish(sum);
  return sum;
}

WeightSpec norm_weight_of(const WrongTap& wrong) {
  const Weight weight = wrong.kind == TapKind::final_norm ? Weight::final_norm
                        : wrong.kind == TapKind::moe_norm ? Weight::moe_norm
                                                          : Weight::attention_norm;
  return weight_spec(wrong.model.plan().model, weight, wrong.layer);
}

Row projected(const WrongTap& wrong, const WrongRow& row, TapKind input, Weight weight) {
  Recompute& model = wrong.model;
  return model.project(model.row(model.tap(input == TapKind::final_norm ? -1 : wrong.layer, input), row.row),
                       weight_spec(model.plan().model, weight, wrong.layer), {row.col, std::ssize(row.got)});
}

Row heads(const WrongTap& wrong, const WrongRow& row) {
  return wrong.model.heads(wrong.kind, wrong.layer, {row.row, wrong.layer, wrong.model.tokens().position(row.row)},
                           {row.col, std::ssize(row.got)});
}

/// RMSNorm of the first `count` elements of another tap.
Row latent_norm(const WrongTap& wrong, const WrongRow& row, TapKind input, Weight weight) {
  const WeightSpec spec = weight_spec(wrong.model.plan().model, weight, wrong.layer);
  const std::span<const double> x = wrong.model.row(wrong.model.tap(wrong.layer, input), row.row);
  return wrong.model.norm(x.first(static_cast<std::size_t>(spec.cols)), spec);
}

/// Of two taps of the row.
Row sum_of_taps(const WrongTap& wrong, const WrongRow& row, TapKind x, TapKind y) {
  const auto first = wrong.model.row(wrong.model.tap(wrong.layer, x), row.row);
  const auto second = wrong.model.row(wrong.model.tap(wrong.layer, y), row.row);
  Row sum(first.begin(), first.end());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += second[i];
  wrong.model.finish(sum);
  return sum;
}

Row scaled_embedding(Recompute& model, std::int64_t index) {
  const auto x = model.row(model.tap(-1, TapKind::embedding), index);
  Row y(x.begin(), x.end());
  ops::scale<double>({y.data(), 1, std::ssize(y)}, model.plan().model.embedding_multiplier, model.format());
  return y;
}

Row gated(const WrongTap& wrong, const WrongRow& row) {
  const auto x = wrong.model.row(wrong.model.tap(wrong.layer, TapKind::mlp_output), row.row);
  const auto logit = wrong.model.row(wrong.model.tap(wrong.layer, TapKind::shared_gate), row.row);
  Row y(x.begin(), x.end());
  const ops::MatrixView<double> out(y.data(), 1, std::ssize(y));
  ops::gate_rows<double>(out, {logit.data(), 1, 1}, wrong.model.format(), out);
  return y;
}

Row residual(const WrongTap& wrong, const WrongRow& row) {
  Recompute& model = wrong.model;
  const bool moe = wrong.kind == TapKind::moe_residual;
  const auto x = model.row(model.norm_input(wrong.layer, moe ? TapKind::moe_norm : TapKind::attention_norm), row.row);
  const Row y = model.branch(model.tap(wrong.layer, moe ? feed_forward_addend(model.plan().model.layers[wrong.layer])
                                                        : TapKind::attention_output),
                             row.row);
  Row sum(x.begin(), x.end());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
  model.finish(sum);
  return sum;
}

Row combined(const WrongTap& wrong, const WrongRow& row) {
  Recompute& model = wrong.model;
  const ExpectedTap& ids = model.tap(wrong.layer, TapKind::router_choice);
  const ExpectedTap& weights = model.tap(wrong.layer, TapKind::router_weights);
  Row sum(static_cast<std::size_t>(wrong.expected.cols), 0.0);
  for (std::int64_t slot = 0; slot < ids.cols; ++slot) {
    const Row output =
        model.expert_output(wrong.layer, row.row, {wrong.layer, static_cast<std::int64_t>(ids.at(row.row, slot))});
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weights.at(row.row, slot) * output[i];
  }
  model.finish(sum);
  return sum;
}

}  // namespace

std::vector<double> predicted(const WrongTap& wrong, const WrongRow& row) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  switch (wrong.kind) {
    case TapKind::embedding:
      return columns(sum_of_parts(model, tp, [&](int m) { return model.embedding_partial_sum(row.row, m); }), row);
    case TapKind::embedding_scaled:
      return columns(scaled_embedding(model, row.row), row);
    case TapKind::attention_norm:
    case TapKind::moe_norm:
    case TapKind::final_norm:
      return columns(model.norm(model.row(model.norm_input(wrong.layer, wrong.kind), row.row), norm_weight_of(wrong)),
                     row);
    case TapKind::attention_q_latent:
      return projected(wrong, row, TapKind::attention_norm, Weight::attention_q_latent);
    case TapKind::attention_q_latent_norm:
      return columns(latent_norm(wrong, row, TapKind::attention_q_latent, Weight::attention_q_latent_norm), row);
    case TapKind::attention_kv_latent:
      return projected(wrong, row, TapKind::attention_norm, Weight::attention_kv_latent);
    case TapKind::attention_kv_latent_norm:
      return columns(latent_norm(wrong, row, TapKind::attention_kv_latent, Weight::attention_kv_latent_norm), row);
    case TapKind::attention_q:
    case TapKind::attention_k:
    case TapKind::attention_v:
      return heads(wrong, row);
    case TapKind::attention_context:
      return attended(wrong, row);
    case TapKind::attention_output:
      return columns(sum_of_parts(model, tp,
                                  [&](int m) {
                                    return model.attention_partial_sum(wrong.layer, row.row, m, {wrong.layer, m});
                                  }),
                     row);
    case TapKind::attention_residual:
    case TapKind::moe_residual:
      return columns(residual(wrong, row), row);
    case TapKind::router_logits:
      return projected(wrong, row, TapKind::moe_norm, Weight::router);
    case TapKind::router_scores:
    case TapKind::router_choice:
    case TapKind::router_weights:
      return columns(routed(wrong, row), row);
    case TapKind::moe_output:
      return columns(combined(wrong, row), row);
    case TapKind::mlp_output:
      return columns(sum_of_parts(model, tp, [&](int m) { return model.mlp_partial_sum(wrong.layer, row.row, m); }),
                     row);
    case TapKind::shared_gate:
      return projected(wrong, row, TapKind::moe_norm, Weight::shared_gate);
    case TapKind::shared_output:
      return columns(gated(wrong, row), row);
    case TapKind::moe_sum:
      return columns(
          sum_of_taps(wrong, row, TapKind::moe_output,
                      model.plan().model.layers[wrong.layer].feed_forward.shared_gate ? TapKind::shared_output
                                                                                      : TapKind::mlp_output),
          row);
    case TapKind::logits:
      return projected(wrong, row, TapKind::final_norm, Weight::head);
    case TapKind::attention_q_projection:
    case TapKind::attention_squares_partial:
    case TapKind::attention_squares:
    case TapKind::attention_q_normed:
    case TapKind::attention_kv_projection:
    case TapKind::attention_k_projection:
    case TapKind::attention_k_normed:
    case TapKind::mlp_gate:
    case TapKind::mlp_up:
    case TapKind::mlp_activation:
    case TapKind::mlp_partial:
    case TapKind::attention_q_absorbed:
    case TapKind::attention_latent_part:
    case TapKind::attention_latent_lse:
    case TapKind::attention_latent_context:
    case TapKind::attention_ring_context:
    case TapKind::attention_ring_lse:
    case TapKind::attention_partial:
    case TapKind::expert_gate:
    case TapKind::expert_up:
    case TapKind::expert_activation:
    case TapKind::expert_partial:
    case TapKind::expert_output:
    case TapKind::moe_partial:
      break;  // of the rounding
  }
  return {};
}

std::optional<Cause> null_cause(const WrongTap& wrong) {
  const auto prediction = [&](const WrongRow& row) { return predicted(wrong, row); };
  if (!explains(wrong.rows, prediction, wrong.tolerance)) return std::nullopt;
  return Cause{
      "op_differs",
      fmt::format("the op alone, on one rank and the reference's own inputs, gives the {} values that {} hold: "
                  "it computes something else than the reference, whatever the sharding",
                  wrong.rows.size(), ranks_of(wrong.rows))};
}

}  // namespace shardproof::diagnosis
