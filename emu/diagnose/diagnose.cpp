#include "emu/diagnose/diagnose.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/judge/judge.h"

namespace shardproof {
namespace {

/// What a value of `exact` is rounded to.
constexpr double kStep = 0x1p-10;
/// In a float format, values are held to a hypothesis no closer than this share of the row's scale.
constexpr double kFloatTolerance = 1e-3;

/// Recomputing the experts of a layer for every token must cost no more than this, or the search for a cause would take
/// longer than the run that it explains. Models of `--scale auto` are far below.
constexpr double kRecomputedFlops = 1e11;

double expert_flops(const Plan& plan, int layer) {
  const ModelConfig& model = plan.model;
  return 6.0 * static_cast<double>(model.hidden_size) *
         static_cast<double>(model.layers[layer].feed_forward.intermediate_size) *
         static_cast<double>(model.layers[layer].feed_forward.num_experts) *
         static_cast<double>(plan.workload.tokens());
}

/// The ranks that a sum over tp gives the same sum, or others of its rows; of any other tap the rank alone.
std::vector<int> beside(const Recompute& model, TapKind kind, int rank) {
  const bool summed = kind == TapKind::embedding || kind == TapKind::attention_output || kind == TapKind::mlp_output;
  return summed ? model.mesh().group(Axis::tp, rank) : std::vector{rank};
}

/// The wrong rows and, of the same ranks in the same microbatches, the right ones.
std::vector<WrongRow> witnesses_of(const Recompute& model, const ExpectedTap& expected, std::span<const TapPart> parts,
                                   double tolerance, const std::vector<WrongRow>& wrong) {
  std::set<int> ranks;
  std::set<std::pair<int, std::int64_t>> places;  // replica and microbatch
  const auto place = [&](const WrongRow& row) {
    const RowHome home = model.tokens().home(row.row);
    return std::pair{home.at.dp, home.microbatch};
  };
  for (const WrongRow& row : wrong) {
    const std::vector<int> group = beside(model, expected.id->kind, row.rank);
    ranks.insert(group.begin(), group.end());
    places.insert(place(row));
  }
  std::vector<WrongRow> witnesses = wrong;
  const std::vector<int> wanted(ranks.begin(), ranks.end());
  for (WrongRow& row : right_rows(expected, parts, tolerance, wanted)) {
    if (places.contains(place(row))) witnesses.push_back(std::move(row));
  }
  return witnesses;
}

/// What there is of the tap is right, but not all is there: a rank hands in another's block in place of its own.
Cause missing_cause(const DiagnosisInput& input, const ExpectedTap& expected) {
  if (expected.id->kind == TapKind::attention_norm) return {"layer_missing", input.divergence.message};
  const Mesh mesh(input.plan.parallel);
  const TapRow& row = tap_row(expected.id->kind);
  for (const TapPart& part : input.parts) {
    const Layout layout = make_layout(input.plan.model, mesh, part.rank);
    const Range own = part_of(layout, input.plan.model, row.cols, expected.id->layer, expected.cols);
    const Range held = part.placement.col_part;
    if (row.cols == Split::none || held == own || held.count != own.count) continue;
    return {"wrong_slice", fmt::format("rank {} holds columns {} to {}, where {} to {} are its own: {}", part.rank,
                                       held.begin, held.end() - 1, own.begin, own.end() - 1, input.divergence.message)};
  }
  return {"unknown", fmt::format("what there is of it is right: {}", input.divergence.message)};
}

std::optional<Cause> cause_by_kind(const diagnosis::WrongTap& wrong) {
  switch (wrong.kind) {
    case TapKind::embedding:
      return embedding_cause(wrong);
    case TapKind::attention_norm:
    case TapKind::moe_norm:
    case TapKind::final_norm:
      return norm_cause(wrong);
    case TapKind::attention_q:
    case TapKind::attention_k:
    case TapKind::attention_v:
    case TapKind::router_logits:
    case TapKind::logits:
      return projection_cause(wrong);
    case TapKind::attention_context:
      return context_cause(wrong);
    case TapKind::attention_output:
      return attention_output_cause(wrong);
    case TapKind::mlp_output:
      return mlp_output_cause(wrong);
    case TapKind::attention_residual:
    case TapKind::moe_residual:
      return residual_cause(wrong);
    case TapKind::router_scores:
    case TapKind::router_choice:
    case TapKind::router_weights:
      return router_cause(wrong);
    case TapKind::moe_output:
      return moe_output_cause(wrong);
    case TapKind::embedding_scaled:
      return gather_cause(wrong);
    case TapKind::attention_q_latent:
    case TapKind::attention_q_latent_norm:
    case TapKind::attention_kv_latent:
    case TapKind::attention_kv_latent_norm:
    case TapKind::shared_gate:
      return replicated_weight_cause(wrong);
    // What needs no knowledge of the tap has to do.
    case TapKind::shared_output:
    case TapKind::moe_sum:
    // Only the rounding is judged by the steps of an op, and its cause is the rounding.
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
      break;
  }
  return std::nullopt;
}

}  // namespace

Cause diagnose(const DiagnosisInput& input) {
  const ExpectedTaps& taps = input.reference.expected;
  const int index = taps.find(input.divergence.tap);
  if (index < 0 || !taps.all()[static_cast<std::size_t>(index)].id) {
    return {"unknown", "the tap is not the reference's"};
  }
  const ExpectedTap& expected = taps.all()[static_cast<std::size_t>(index)];
  const TapKind kind = expected.id->kind;
  const int layer = expected.id->layer;
  if (input.parts.empty()) {
    return {kind == TapKind::attention_norm ? "layer_missing" : "unknown",
            fmt::format("no rank produced {}", expected.name)};
  }
  const bool exact = input.reference.format == ops::Format::exact;
  const double scale = *std::ranges::max_element(expected.scale);
  const double relative = exact ? 0 : std::max(kFloatTolerance, input.divergence.bound);
  const std::vector<WrongRow> wrong = wrong_rows(expected, input.parts, relative);
  if (wrong.empty()) {
    if (input.divergence.verdict == TapVerdict::missing) return missing_cause(input, expected);
    return {"replicas_differ", fmt::format("every value is close to what is expected: {}", input.divergence.message)};
  }
  Recompute model(input.plan, input.reference);
  const std::vector<WrongRow> witnesses = witnesses_of(model, expected, input.parts, relative, wrong);
  const diagnosis::WrongTap wrong_tap{.model = model,
                                      .expected = expected,
                                      .layer = layer,
                                      .kind = kind,
                                      .rows = wrong,
                                      .witnesses = witnesses,
                                      .norm_parts = input.norm_parts,
                                      .tolerance = relative * scale,
                                      .step = exact ? kStep : 0};
  const bool small_enough = kind != TapKind::moe_output || expert_flops(input.plan, layer) <= kRecomputedFlops;
  if (small_enough) {
    if (auto cause = diagnosis::null_cause(wrong_tap)) return *cause;
    if (auto cause = cause_by_kind(wrong_tap)) return *cause;
  }
  if (!expected.traits.ids) {
    if (auto cause = diagnosis::general_cause(wrong_tap)) return *cause;
  }
  return {
      "unknown",
      fmt::format("{} rows are wrong, on {}; {}", wrong.size(), diagnosis::ranks_of(wrong),
                  small_enough ? "no known fault gives their values"
                               : "the experts are too large to try what gives their values: a smaller --scale may")};
}

}  // namespace shardproof
