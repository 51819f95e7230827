#include "emu/report/baseline.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "emu/judge/hash.h"
#include "emu/model/fields.h"
#include "emu/plan/latent_form.h"

namespace shardproof {
namespace {

BaselineChange not_comparable(std::string_view what, std::string_view recorded, std::string_view now) {
  return {"", fmt::format("the baseline is of {} {}, this run of {}: record a new one", what, recorded, now)};
}

std::optional<BaselineChange> compare_tap(const BaselineTap& recorded, const BaselineTap& now, double tolerance) {
  if (recorded.name != now.name) {
    return BaselineChange{recorded.name, fmt::format("the baseline has {} here, this run {}", recorded.name, now.name)};
  }
  if (recorded.rows != now.rows || recorded.cols != now.cols) {
    return BaselineChange{now.name,
                          fmt::format("was {} x {}, is {} x {}", recorded.rows, recorded.cols, now.rows, now.cols)};
  }
  if (recorded.hash && now.hash && *recorded.hash != *now.hash) {
    return BaselineChange{now.name,
                          fmt::format("bits changed: hash was {:016x}, is {:016x}; norm was {:.17g}, is {:.17g}",
                                      *recorded.hash, *now.hash, recorded.norm, now.norm)};
  }
  const double scale = std::max(std::abs(recorded.norm), std::abs(now.norm));
  // Written so that a norm that is not a number is a change.
  if (std::abs(recorded.norm - now.norm) <= tolerance * scale) return std::nullopt;
  return BaselineChange{
      now.name, fmt::format("norm was {:.17g}, is {:.17g}: {:.3g} apart, {:.3g} allowed", recorded.norm, now.norm,
                            std::abs(recorded.norm - now.norm) / scale, tolerance)};
}

/// Which tokens are run together may move their rounding.
void add_serving(const Serving& serving, Hasher& hasher) {
  hasher.add(random_key(1, "serving"));
  for (const Request& request : serving.requests) {
    for (const std::int64_t value : {request.prompt, request.output, request.arrival}) hasher.add(value);
    if (request.prefix == 0) continue;  // a key added later, so that recorded baselines hold
    for (const std::int64_t value : {request.prefix, request.prefix_group}) hasher.add(value);
  }
  for (const std::int64_t value :
       {serving.max_tokens_per_step, serving.max_sequences, serving.kv_block_size, serving.kv_blocks}) {
    hasher.add(value);
  }
  if (serving.prefix_sharing) hasher.add(random_key(1, "prefix_sharing"));
  for (const std::vector<StatedChunk>& step : serving.steps) {
    hasher.add(static_cast<std::int64_t>(step.size()));
    for (const StatedChunk& chunk : step) {
      hasher.add(chunk.request);
      hasher.add(chunk.tokens);
    }
  }
}

}  // namespace

Baseline baseline_of(const VerifyReport& report) {
  Baseline baseline{.plan = report.plan.name, .format = report.format};
  baseline.inputs = hash_inputs(report.plan, report.format);
  for (const TapReport& tap : report.taps) {
    if (tap.inner) continue;  // what an op is made of may change while its result does not
    baseline.taps.push_back(
        {.name = tap.name, .rows = tap.rows, .cols = tap.cols, .norm = tap.norm, .hash = tap.exact_hash});
  }
  return baseline;
}

namespace {

template <class Value>
void add_field(const FieldInfo& field, const Value& value, Hasher& hasher) {
  if (field.added_later) {
    if (static_cast<double>(value) == field.later_default) return;
    hasher.add(random_key(0, field.key));
  }
  if constexpr (std::is_enum_v<Value>) {
    hasher.add(static_cast<std::int64_t>(value));
  } else {
    hasher.add(value);
  }
}

}  // namespace

std::uint64_t hash_inputs(const Plan& plan, ops::Format format) {
  Hasher hasher;
  visit_fields(plan.model, [&](const FieldInfo& field, const auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::vector<double>>) {
      if (!value.empty()) hasher.add(random_key(0, field.key));
      for (const double element : value) hasher.add(element);
    } else {
      add_field(field, value, hasher);
    }
  });
  // Layers that are not all alike: which is which.
  for (std::int64_t i = 0; plan.model.layers.kinds().size() > 1 && i < plan.model.layers.size(); ++i) {
    hasher.add(plan.model.layers.kind_of(i));
  }
  hasher.add(plan.workload.seed);
  for (const std::int64_t length : plan.workload.lengths) hasher.add(length);
  for (const std::vector<std::int32_t>& sequence : plan.workload.token_ids) {
    for (const std::int32_t id : sequence) hasher.add(id);
  }
  if (has_absorbed(plan)) {
    hasher.add(random_key(6, "absorbed"));
    for (const std::int64_t position : absorbed_from(plan.parallel, plan.workload)) hasher.add(position);
  }
  if (format != ops::Format::exact) {
    const Parallel& p = plan.parallel;
    for (const int degree : {p.tp, p.cp, p.dp, p.pp, p.ep, p.etp, p.edp}) hasher.add(degree);
    hasher.add(p.sp);
    if (p.cp > 1) hasher.add(static_cast<std::int64_t>(p.cp_comm));
    if (p.cp_a2a > 1) hasher.add(static_cast<std::int64_t>(p.cp_a2a));
    if (p.dispatch != DispatchComm::all_to_all) hasher.add(random_key(5, to_string(p.dispatch)));
    for (const std::int64_t share : {std::int64_t{p.dcp}, p.dcp_interleave}) {
      if (p.dcp > 1) hasher.add(share);
    }
    hasher.add(plan.workload.microbatches);
    if (plan.workload.idle != Idle::zero) hasher.add(static_cast<std::int64_t>(plan.workload.idle));
    if (plan.workload.serving) add_serving(*plan.workload.serving, hasher);
  }
  return hasher.result();
}

std::uint64_t digest_of(const Baseline& baseline) {
  Hasher hasher;
  // Each text under a place of its own, so that nothing moves from one to another.
  hasher.add(random_key(1, baseline.plan));
  hasher.add(random_key(2, baseline.weights));
  hasher.add(random_key(3, ops::to_string(baseline.format)));
  hasher.add(baseline.inputs);
  hasher.add(baseline.taps.size());
  for (const BaselineTap& tap : baseline.taps) {
    hasher.add(random_key(4, tap.name));
    hasher.add(tap.rows);
    hasher.add(tap.cols);
    hasher.add(tap.norm);
    hasher.add(tap.hash.value_or(0));
  }
  return hasher.result();
}

double norm_tolerance(ops::Format format) {
  return 16 * ops::unit_roundoff(format == ops::Format::exact ? ops::Format::fp64 : format);
}

std::optional<BaselineChange> first_change(const Baseline& recorded, const Baseline& now) {
  if (recorded.format != now.format) {
    return not_comparable("the format", to_string(recorded.format), to_string(now.format));
  }
  if (recorded.weights != now.weights) return not_comparable("the weights", recorded.weights, now.weights);
  if (recorded.inputs != now.inputs) {
    return not_comparable("the model and workload", fmt::format("{} ({:016x})", recorded.plan, recorded.inputs),
                          fmt::format("{} ({:016x})", now.plan, now.inputs));
  }
  const std::size_t common = std::min(recorded.taps.size(), now.taps.size());
  for (std::size_t i = 0; i < common; ++i) {
    if (auto change = compare_tap(recorded.taps[i], now.taps[i], norm_tolerance(now.format))) return change;
  }
  if (recorded.taps.size() > common) {
    return BaselineChange{recorded.taps[common].name, "is in the baseline, but not in this run"};
  }
  if (now.taps.size() > common) return BaselineChange{now.taps[common].name, "is not in the baseline"};
  return std::nullopt;
}

}  // namespace shardproof
