#include "emu/judge/verify.h"

#include <cstddef>
#include <future>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "collectives/errors.h"
#include "collectives/make_executor.h"
#include "emu/diagnose/capture.h"
#include "emu/diagnose/diagnose.h"
#include "emu/judge/judge.h"
#include "emu/judge/prepared.h"
#include "emu/judge/session.h"

namespace shardproof {
namespace {

std::vector<std::vector<std::int64_t>> count_tokens(const Plan& plan, const ExpectedTaps& expected,
                                                    const std::vector<TapOutcome>& outcomes) {
  std::vector<std::vector<std::int64_t>> counts(static_cast<std::size_t>(plan.model.layers.size()));
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (!tap.traits.ids) continue;
    const std::int64_t experts = plan.model.layers[tap.id->layer].feed_forward.num_experts;
    std::vector<std::int64_t>& layer = counts[static_cast<std::size_t>(tap.id->layer)];
    layer.assign(static_cast<std::size_t>(experts), 0);
    for (const std::int32_t id : outcomes[i].ids) {
      if (id >= 0 && id < experts) ++layer[static_cast<std::size_t>(id)];
    }
  }
  return counts;
}

Evidence evidence_of(const PreparedReference& reference, const std::vector<double>& bounds, const RunResult& unsharded,
                     const RunResult& sharded) {
  Evidence evidence{.expected = reference.expected,
                    .format = reference.format,
                    .sums = reference.sums,
                    .bounds = bounds,
                    .bounds_hold = unsharded.error.empty(),
                    .unsharded = unsharded.outcomes,
                    .sharded = sharded.outcomes,
                    .problems = {},
                    .unexpected = sharded.unexpected,
                    .remedy = "; choose another seed or a larger scale"};
  if (!unsharded.error.empty()) evidence.problems.push_back({"unsharded run", unsharded.error});
  if (!sharded.error.empty()) evidence.problems.push_back({"run", sharded.error});
  return evidence;
}

/// Fills in everything but causes.
void judge_runs(const Session& session, Runs& runs, VerifyReport& report) {
  const PreparedReference& reference = session.reference();
  const ExpectedTaps& expected = reference.expected;
  report.sharded_seconds = runs.sharded_seconds;
  report.tokens_per_expert = count_tokens(session.plan(), expected, runs.sharded.outcomes);
  report.collectives = std::move(runs.sharded.collectives);
  for (const ExpectedTap& tap : expected.all()) report.elements += std::ssize(tap.values);
  if (reference.format == ops::Format::exact) report.exact_use = exact_use(expected, reference.sums);

  const std::vector<double> bounds = error_bounds(expected, runs.unsharded.outcomes, reference.format);
  report.routing = judge_routing(expected, bounds, runs.sharded.outcomes, reference.format);
  report.routing.replayed = runs.replayed;
  judge(evidence_of(reference, bounds, runs.unsharded, runs.sharded), report);
}

/// Of a mismatch. The sharded program runs once more, to keep what the ranks made of the tap that went wrong.
std::optional<Cause> cause_of(Session& session, const Runs& runs, const VerifyReport& report) {
  const std::string& error = runs.sharded.error;
  if (!error.empty()) return Cause{"rank_error", error.substr(0, error.find('\n'))};
  if (!session.options().diagnose) return std::nullopt;
  const Divergence& divergence = *report.first_divergence;
  const int wrong = session.reference().expected.find(divergence.tap);
  CapturingSink sink(*session.reference().expected.all().at(static_cast<std::size_t>(wrong)).id);
  session.repeat(runs, sink);
  return diagnose({.plan = session.plan(),
                   .reference = session.reference(),
                   .divergence = divergence,
                   .parts = sink.parts(),
                   .norm_parts = sink.norm_parts()});
}

/// The report of a plan that is not run.
VerifyReport refused(const Plan& plan, const VerifyOptions& options, std::vector<Problem> problems) {
  return {.plan = plan, .format = options.format, .schedule = options.schedule, .problems = std::move(problems)};
}

}  // namespace

VerifyReport verify(const RunnablePlan& plan, const VerifyOptions& options) {
  VerifyReport report{.plan = plan.plan(), .format = options.format, .schedule = options.schedule};
  report.threads = options.schedule ? 1 : make_executor(options.threads)->threads();
  try {
    Session session(plan, options);
    report.reference_seconds = session.reference().seconds;
    Runs runs = session.run();
    judge_runs(session, runs, report);
    if (report.verdict == Verdict::mismatch) report.first_divergence->cause = cause_of(session, runs, report);
  } catch (const CollectiveError& error) {
    report.verdict = Verdict::deadlock;
    report.stall = stall_of(error);
  }
  return report;
}

VerifyReport verify(const Plan& plan, const VerifyOptions& options) {
  Runnable runnable = make_runnable(plan);
  if (!runnable.plan) return refused(plan, options, std::move(runnable.problems));
  return verify(*runnable.plan, options);
}

Proof prove(const RunnablePlan& plan, const VerifyOptions& options) {
  if (options.format == ops::Format::exact) return {.algebra = verify(plan, options), .rounding = {}};
  VerifyOptions exact_options = options;
  exact_options.format = ops::Format::exact;
  // The rounding's reference needs nothing of the algebra's verdict: it is made beside it, most of it beside the
  // algebra's own reference, which keeps but one core busy for much of its time.
  std::future<PreparedReference> reference =
      std::async(beside(options), [&] { return prepare_reference(plan.plan(), options.format, options.weights); });
  Proof proof{.algebra = verify(plan, exact_options), .rounding = {}};
  if (proof.algebra.verdict != Verdict::pass) return proof;
  const PreparedReference prepared = reference.get();
  VerifyOptions rounding_options = options;
  rounding_options.prepared = &prepared;
  rounding_options.diagnose = false;
  proof.rounding = verify(plan, rounding_options);
  if (proof.rounding->first_divergence) {
    proof.rounding->first_divergence->cause =
        Cause{"rounding", "the algebra is right in exact: the plan rounds more in this format than the bound allows"};
  }
  return proof;
}

Proof prove(const Plan& plan, const VerifyOptions& options) {
  Runnable runnable = make_runnable(plan);
  if (!runnable.plan) return {.algebra = refused(plan, options, std::move(runnable.problems)), .rounding = {}};
  return prove(*runnable.plan, options);
}

}  // namespace shardproof
