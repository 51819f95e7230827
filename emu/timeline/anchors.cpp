#include "emu/timeline/anchors.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "emu/timeline/projection.h"
#include "ops/expert.h"
#include "ops/linear.h"

namespace shardproof {
namespace {

constexpr int kCalibratingRows = 3;

Plan plan_of(const Anchor& anchor, const ModelConfig& model) {
  Plan plan;
  plan.name = anchor.id;
  plan.model = model;
  plan.parallel = {.tp = anchor.tp,
                   .cp = anchor.cp,
                   .dp = anchor.dp,
                   .pp = anchor.pp,
                   .ep = anchor.ep,
                   .etp = anchor.etp,
                   .edp = anchor.tp * anchor.cp * anchor.dp / (anchor.ep * anchor.etp),
                   .sp = anchor.sp,
                   .dispatch = anchor.dispatch,
                   .overlap = anchor.overlap};
  plan.workload.lengths.assign(static_cast<std::size_t>(anchor.batch), anchor.context);
  plan.workload.microbatches = anchor.overlap == Overlap::two_batch ? 2 : 1;
  return plan;
}

double step_seconds(const Anchor& anchor, const ModelConfig& model, const HardwareModel& hardware) {
  const Plan plan = plan_of(anchor, model);
  if (anchor.kind == AnchorKind::training) {
    return training_seconds(plan, anchor.training, hardware, {.format = ops::Format::bf16, .weights = anchor.weights});
  }
  const DryPass pass = anchor.kind == AnchorKind::decode ? DryPass::decode : DryPass::prefill;
  const DryTraces traces = dry_run(plan, ops::Format::bf16, pass, StatedRouting::of(plan));
  const PassTiming timing =
      time_pass(plan, traces, pass, hardware, {.format = ops::Format::bf16, .weights = anchor.weights});
  return timing.period + (anchor.kind == AnchorKind::first_token ? hardware.request_overhead_seconds : 0);
}

/// The records that a dry run would make of them.
OpRecord expert_record(std::int64_t rows, std::int64_t hidden, std::int64_t width) {
  const ops::Cost cost = ops::expert_cost(rows, hidden, width, ops::bytes_per_element(ops::Format::bf16));
  OpRecord record;
  record.op = Op::moe_expert;
  record.rows = rows;
  record.cols = hidden;
  record.flops = cost.flops;
  record.bytes = cost.bytes;
  return record;
}

OpRecord product_record(const Anchor& anchor) {
  const ops::Cost cost = ops::linear_cost(anchor.m, anchor.n, anchor.k, ops::bytes_per_element(ops::Format::bf16));
  OpRecord record;
  record.op = Op::attention_q;
  record.rows = anchor.m;
  record.cols = anchor.n;
  record.flops = cost.flops;
  record.bytes = cost.bytes;
  return record;
}

double kernel_seconds(const Anchor& anchor, const HardwareModel& hardware) {
  const ModelConfig none;
  const WorkRules rules{none, ops::Format::bf16, DryPass::prefill, anchor.weights};
  if (anchor.kind == AnchorKind::gemm) return seconds_of(work_of(product_record(anchor), rules), hardware);
  // One rank's share of the slots, dealt to its experts one by one.
  const std::int64_t held = anchor.experts / anchor.ep;
  const std::int64_t slots = (anchor.tokens * anchor.top_k + anchor.ep - 1) / anchor.ep;
  KernelWork all{.rate = rate_of(rules.format), .grouped = true};
  for (std::int64_t expert = 0; expert < held; ++expert) {
    const std::int64_t rows = partition(slots, held, expert).count;
    if (rows == 0) break;
    const KernelWork one = work_of(expert_record(rows, anchor.hidden, anchor.width / anchor.tp), rules);
    all.flops += one.flops;
    all.bytes += one.bytes;
    all.rate = one.rate;
  }
  return seconds_of(all, hardware);
}

double collective_seconds(const Anchor& anchor, const HardwareModel& hardware) {
  const GroupShape group{.ranks = anchor.ranks, .nodes = 1, .per_node = anchor.ranks};
  const double share = (anchor.ranks - 1.0) / anchor.ranks;
  const double wire = anchor.bytes * share * (anchor.operation == Operation::all_reduce ? 2 : 1);
  return (anchor.direct ? collective_time(hardware, group, anchor.operation, wire)
                        : ring_time(hardware, group, anchor.operation, wire))
      .seconds();
}

}  // namespace

std::string_view to_string(AnchorKind kind) {
  constexpr std::string_view kNames[] = {"decode",    "prefill", "first_token", "training",
                                         "fused_moe", "gemm",    "collective"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string Anchor::group() const {
  if (kind == AnchorKind::collective) return fmt::format("collectives on {}", card);
  if (kind == AnchorKind::gemm || kind == AnchorKind::fused_moe) return fmt::format("kernels on {}", card);
  return fmt::format("{} on {}, {}", engine, card, to_string(kind));
}

std::vector<ProjectedAnchor> project_anchors(const AnchorBook& anchors, const HardwareBook& hardware) {
  std::map<std::string, int> calibrating;
  for (const Anchor& anchor : anchors.cases) calibrating[anchor.group()] += anchor.calibrates ? 1 : 0;
  std::vector<ProjectedAnchor> all;
  for (const Anchor& anchor : anchors.cases) {
    const HardwarePreset* card = hardware.find(anchor.card);
    if (card == nullptr) throw std::invalid_argument(fmt::format("{}: no card is called {}", anchor.id, anchor.card));
    const bool known = std::ranges::find(card->engines, anchor.engine, &EngineModel::name) != card->engines.end();
    const HardwareModel model =
        choose_hardware(hardware, std::nullopt,
                        {.preset = anchor.card, .engine = known ? anchor.engine : std::string()})
            .model;
    ProjectedAnchor& projected = all.emplace_back();
    projected.anchor = &anchor;
    projected.calibrated = calibrating[anchor.group()] >= kCalibratingRows;
    if (anchor.kind == AnchorKind::collective) {
      projected.seconds = collective_seconds(anchor, model);
    } else if (anchor.kind == AnchorKind::gemm || anchor.kind == AnchorKind::fused_moe) {
      projected.seconds = kernel_seconds(anchor, model);
    } else {
      const auto found = anchors.models.find(anchor.model);
      if (found == anchors.models.end()) {
        throw std::invalid_argument(fmt::format("{}: no model is called {}", anchor.id, anchor.model));
      }
      projected.seconds = step_seconds(anchor, found->second, model);
    }
  }
  return all;
}

Residuals residuals_of(const std::vector<const ProjectedAnchor*>& rows) {
  Residuals residuals;
  for (const ProjectedAnchor* row : rows) {
    if (!row->anchor->calibrates) continue;
    const double residual = row->anchor->seconds / row->seconds - 1;
    residuals.low = std::min(residuals.low, residual);
    residuals.high = std::max(residuals.high, residual);
    ++residuals.cases;
  }
  return residuals;
}

}  // namespace shardproof
