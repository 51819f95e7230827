#include "emu/judge/judge_dump.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "emu/diagnose/capture.h"
#include "emu/diagnose/diagnose.h"
#include "emu/judge/collector.h"
#include "emu/judge/judge.h"
#include "emu/judge/prepared.h"
#include "emu/judge/rounding/op_rules.h"
#include "emu/judge/rounding/rounding_judge.h"

namespace shardproof {
namespace {

/// In sixteen bits values that were computed in another order are often neighbours: a cause is looked for among values
/// that are as close as so many roundings.
constexpr double kRoundingsApart = 4;

/// The sequences of these ids, one after another.
Plan with_tokens(Plan plan, const std::optional<std::vector<std::int32_t>>& ids) {
  if (!ids) return plan;
  plan.workload.token_ids.clear();
  auto next = ids->begin();
  for (const std::int64_t length : plan.workload.lengths) {
    plan.workload.token_ids.emplace_back(next, next + length);
    next += length;
  }
  return plan;
}

/// The dump's taps, and what came of them.
struct DumpEvidence {
  ExpectedTaps expected;
  std::vector<TapOutcome> outcomes;
};

DumpEvidence evidence_of(const ExpectedTaps& taps, const rounding::RoundingJudge& judge, TapCollector& collector,
                         const std::vector<bool>& present, DumpCoverage& coverage) {
  DumpEvidence evidence;
  std::vector<TapOutcome> outcomes = collector.finish();
  for (std::size_t tap = 0; tap < outcomes.size(); ++tap) {
    const ExpectedTap& expected = taps.all()[tap];
    if (!present[tap]) {
      if (judge.derived(tap)) coverage.computed.push_back(expected.name);
      continue;
    }
    const rounding::Judged& judged = judge.judged(tap);
    TapOutcome& outcome = outcomes[tap];
    outcome.worst = judged.worst;
    outcome.vacuous = judged.vacuous;
    if (!judged.done) {
      outcome.not_judged = judge.why_not_judged(tap);
    } else if (!judged.not_finite.empty()) {
      (judge.rests_on_derived(tap) ? outcome.not_judged : outcome.undecided) = judged.not_finite;
    }
    if (outcome.not_judged.empty()) {
      ++coverage.judged;
    } else {
      coverage.not_judged.push_back({expected.name, outcome.not_judged});
    }
    evidence.expected.add_shape(*expected.id, expected.rows, expected.cols, expected.traits);
    evidence.outcomes.push_back(std::move(outcome));
  }
  return evidence;
}

/// The run's own tensors, and what the wrong one should be, in the place of a reference.
PreparedReference reference_of(const PreparedReference& prepared, const rounding::Rules& rules,
                               const rounding::RoundingJudge& judge, const TapId& wrong) {
  PreparedReference reference{.batch = prepared.batch, .format = prepared.format, .weights = prepared.weights};
  reference.slices = std::make_unique<WeightStore<double>>(*prepared.weights, prepared.format, kWeightBytesKept);
  const std::vector<ExpectedTap>& taps = rules.taps.all();
  for (std::size_t tap = 0; tap < taps.size(); ++tap) {
    const TapId& id = *taps[tap].id;
    std::optional<rounding::RunTensor> derived;
    if (id == wrong) derived = rounding::derive_tap(rules, judge.tensors(), id);
    const rounding::RunTensor& tensor = derived ? *derived : judge.tensors().at(tap);
    std::vector<double> values;
    if (tensor.ids.size() > 0) {
      values.assign(tensor.ids.span().begin(), tensor.ids.span().end());
    } else {
      for (std::int64_t row = 0; row < tensor.rows; ++row) {
        for (std::int64_t col = 0; col < tensor.cols; ++col) values.push_back(tensor.at(row, col));
      }
    }
    if (std::ssize(values) != taps[tap].size()) continue;  // the dump does not have it
    reference.expected.add(id, taps[tap].rows, taps[tap].cols, std::move(values), taps[tap].traits);
  }
  return reference;
}

Cause dump_cause(const Plan& plan, const Dump& dump, const PreparedReference& reference, const TapId& wrong,
                 const Divergence& divergence) {
  CapturingSink sink(wrong);
  dump.hand_in(sink);
  Divergence loose = divergence;
  loose.bound = kRoundingsApart * ops::unit_roundoff(reference.format);
  try {
    return diagnose({.plan = plan,
                     .reference = reference,
                     .divergence = loose,
                     .parts = sink.parts(),
                     .norm_parts = sink.norm_parts()});
  } catch (const std::out_of_range&) {
    return {"unknown", "the dump does not have what it would take to tell"};
  }
}

/// Where no signature of a wrong sharding fits. An error that some roundings to bf16, the narrowest format there is,
/// would make is called one of rounding.
Cause unsigned_cause(const VerifyReport& report) {
  constexpr double kRoundings = 8;
  const Divergence& divergence = *report.first_divergence;
  const double share = divergence.error / divergence.bound;
  const std::string off = fmt::format(
      "on the inputs that the run itself had this op is off by {:.3g} times what {} allows "
      "in the profile {}",
      share, ops::to_string(report.format), report.dump->profile);
  const double narrower = ops::unit_roundoff(ops::Format::bf16) / ops::unit_roundoff(report.format);
  if (share <= kRoundings * narrower) {
    return {"rounding",
            off + ": it rounds more often, or to a narrower format, than that says, or computes something else"};
  }
  return {"unknown", off + ": no rounding makes that, and no signature of a wrong sharding fits"};
}

}  // namespace

VerifyReport judge_dump(const RunnablePlan& original, const Dump& dump, const JudgeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = with_tokens(original.plan(), dump.token_ids());
  const PreparedReference prepared = prepare_reference(plan, dump.format(), options.weights);
  const ExpectedTaps& taps = prepared.expected;
  const Mesh mesh(plan.parallel);
  const std::vector<bool> present = dump.present();
  VerifyReport report{.plan = plan, .format = dump.format()};
  report.threads = 1;
  report.dump.emplace().profile = rounding::to_string(options.profile);
  report.dump->not_judged = dump.unused();

  ReduceOptions reduction;
  if (plan.hardware) reduction.gpus_per_node = static_cast<int>(plan.hardware->gpus_per_node);
  const rounding::Rules rules(plan, dump.format(), *prepared.weights, prepared.batch, taps, reduction, options.profile);
  rounding::RoundingJudge judge_of_ops(rules, present);
  TapCollector collector(taps, mesh, {.judge = &judge_of_ops});
  dump.hand_in(collector);

  DumpEvidence evidence = evidence_of(taps, judge_of_ops, collector, present, *report.dump);
  for (std::size_t i = 0; i < evidence.outcomes.size(); ++i) {
    const ExpectedTap& tap = evidence.expected.all()[i];
    report.elements += evidence.outcomes[i].not_judged.empty() ? tap.size() : 0;
    report.router_choices += tap.traits.ids ? tap.rows : 0;
  }
  judge({.expected = evidence.expected,
         .format = dump.format(),
         .sums = {},
         .outcomes = evidence.outcomes,
         .problems = {},
         .unexpected = {},
         .remedy = "; take other tokens"},
        report);
  if (report.dump->judged == 0 && report.verdict == Verdict::pass) {
    report.verdict = Verdict::inconclusive;
    report.problems.push_back({"dump", "none of its taps could be judged"});
  }
  if (report.verdict == Verdict::mismatch && options.diagnose) {
    Divergence& divergence = *report.first_divergence;
    const TapId wrong = *taps.all()[static_cast<std::size_t>(taps.find(divergence.tap))].id;
    Cause cause = dump_cause(plan, dump, reference_of(prepared, rules, judge_of_ops, wrong), wrong, divergence);
    // Values that are wrong by little are close to what is expected, which says nothing of replicas.
    const bool named = cause.name != "unknown" && cause.name != "op_differs" && cause.name != "replicas_differ";
    if (!named && divergence.bound > 0 && divergence.error > divergence.bound) cause = unsigned_cause(report);
    divergence.cause = std::move(cause);
  }
  report.sharded_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace shardproof
