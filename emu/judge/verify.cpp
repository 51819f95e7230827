#include "emu/judge/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <future>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "collectives/make_executor.h"
#include "emu/diagnose/capture.h"
#include "emu/diagnose/diagnose.h"
#include "emu/diagnose/idle_features.h"
#include "emu/judge/amplification.h"
#include "emu/judge/judge.h"
#include "emu/judge/prepared.h"
#include "emu/judge/session.h"
#include "emu/plan/layout.h"
#include "emu/plan/mesh.h"
#include "emu/plan/token_map.h"

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

std::int64_t count_choices(const ExpectedTaps& expected) {
  std::int64_t choices = 0;
  for (const ExpectedTap& tap : expected.all()) choices += tap.traits.ids ? tap.rows : 0;
  return choices;
}

/// The busiest rank's share of the mean; 0 where nothing is served.
double imbalance_of(std::span<const std::int64_t> slots, int ep) {
  std::int64_t most = 0, all = 0;
  for (int rank = 0; rank < ep; ++rank) {
    const Range held = partition(std::ssize(slots), ep, rank);
    std::int64_t sum = 0;
    for (std::int64_t e = held.begin; e < held.end(); ++e) sum += slots[static_cast<std::size_t>(e)];
    most = std::max(most, sum);
    all += sum;
  }
  return all == 0 ? 0 : static_cast<double>(most) * ep / static_cast<double>(all);
}

/// Of choices that are there in order of the tokens.
std::optional<ReplicaReport> count_replicas(const Plan& plan, const ExpectedTaps& expected,
                                            const std::vector<TapOutcome>& outcomes, const VerifyReport& report) {
  const auto maps = expert_maps_of(plan.model, plan.parallel, plan.workload.routing);
  if (maps == nullptr || report.format != ops::Format::exact) return std::nullopt;
  const Mesh mesh(plan.parallel);
  const TokenMap tokens(plan.parallel, plan.workload);
  ReplicaReport replicas{.tokens = std::vector<std::vector<std::int64_t>>(maps->size())};
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (!tap.id || tap.id->kind != TapKind::router_choice || std::ssize(outcomes[i].ids) != tap.size()) continue;
    const auto layer = static_cast<std::size_t>(tap.id->layer);
    const ExpertMap& map = (*maps)[layer];
    std::vector<std::int64_t>& slots = replicas.tokens[layer];
    slots.assign(map.logical().size(), 0);
    for (std::int64_t row = 0; row < tap.rows; ++row) {
      const Range own =
          partition(std::ssize(slots), plan.parallel.ep, mesh.coordinates(mesh.rank_at(tokens.home(row).at)).ep);
      for (std::int64_t s = 0; s < tap.cols; ++s) {
        const std::int64_t expert = outcomes[i].ids[static_cast<std::size_t>(row * tap.cols + s)];
        if (expert < 0 || expert >= std::ssize(report.tokens_per_expert[layer])) return std::nullopt;
        ++slots[static_cast<std::size_t>(map.choose(expert, tokens.run_as(row), own, plan.parallel.experts.replica))];
      }
    }
    const int ep = plan.parallel.ep;
    replicas.imbalance_without =
        std::max(replicas.imbalance_without, imbalance_of(report.tokens_per_expert[layer], ep));
    replicas.imbalance_with = std::max(replicas.imbalance_with, imbalance_of(slots, ep));
  }
  return replicas;
}

/// Fills in everything but causes.
void judge_run(const Session& session, RunResult& run, VerifyReport& report) {
  const PreparedReference& reference = session.reference();
  const ExpectedTaps& expected = reference.expected;
  report.sharded_seconds = run.seconds;
  report.tokens_per_expert = count_tokens(session.plan(), expected, run.outcomes);
  report.replicas = count_replicas(session.plan(), expected, run.outcomes, report);
  report.router_choices = count_choices(expected);
  report.collectives = std::move(run.collectives);
  for (const ExpectedTap& tap : expected.all()) report.elements += tap.size();
  if (reference.format == ops::Format::exact) report.exact_use = exact_use(expected, reference.sums);
  Evidence evidence{.expected = expected,
                    .format = reference.format,
                    .sums = reference.sums,
                    .outcomes = run.outcomes,
                    .problems = {},
                    .unexpected = run.unexpected,
                    .remedy = "; choose another seed or a larger scale",
                    .stalled = run.stall.has_value(),
                    .failed = !run.error.empty()};
  if (!run.error.empty()) evidence.problems.push_back({"run", run.error});
  judge(evidence, report);
}

/// Of a mismatch in `exact`: the sharded program runs once more, to keep what the ranks made of the tap that went
/// wrong.
Cause algebra_cause(Session& session, const Divergence& divergence) {
  const int wrong = session.reference().expected.find(divergence.tap);
  CapturingSink sink(*session.reference().expected.all().at(static_cast<std::size_t>(wrong)).id);
  session.repeat(session.sharded(), sink);
  return diagnose({.plan = session.plan(),
                   .reference = session.reference(),
                   .divergence = divergence,
                   .parts = sink.parts(),
                   .norm_parts = sink.norm_parts()});
}

/// Of a mismatch in a float format: the algebra of the same run is looked at, unless it is known to be right. What is
/// wrong there too is no rounding.
std::optional<Cause> float_cause(const RunnablePlan& plan, const VerifyOptions& options, const VerifyReport& report) {
  const Divergence& divergence = *report.first_divergence;
  if (options.diagnose) {
    VerifyOptions exact = options;
    exact.format = ops::Format::exact;
    exact.prepared = options.prepared_exact;
    exact.taps = nullptr;
    const VerifyReport algebra = verify(plan, exact);
    if (algebra.first_divergence && algebra.first_divergence->cause) {
      const Cause& cause = *algebra.first_divergence->cause;
      return Cause{cause.name, fmt::format("in exact, at {}: {}", algebra.first_divergence->tap, cause.evidence)};
    }
    if (algebra.verdict != Verdict::pass) {
      return Cause{"unknown", fmt::format("in exact the run is no mismatch, but {}", to_string(algebra.verdict))};
    }
  }
  if (!(divergence.error > divergence.bound)) return std::nullopt;
  return Cause{"rounding",
               fmt::format("on the inputs that the run itself had this op is off by {:.3g} times what {} allows: it "
                           "rounds more often, or to a narrower format, than it says, or computes something else{}",
                           divergence.error / divergence.bound, ops::to_string(report.format),
                           options.diagnose ? "; in exact it is right" : "")};
}

/// Of a mismatch of values.
std::optional<Cause> value_cause(const RunnablePlan& plan, Session& session, const VerifyReport& report) {
  if (session.reference().held_to == HeldTo::own_inputs) return float_cause(plan, session.options(), report);
  if (!session.options().diagnose) return std::nullopt;
  return algebra_cause(session, *report.first_divergence);
}

/// Of a mismatch. What was wrong before a rank failed has its own cause; what is missing is so because it failed.
std::optional<Cause> cause_of(const RunnablePlan& plan, Session& session, const RunResult& run,
                              const VerifyReport& report) {
  if (run.error.empty()) return value_cause(plan, session, report);
  if (report.first_divergence->verdict == TapVerdict::mismatch) {
    std::optional<Cause> cause = value_cause(plan, session, report);
    if (cause && cause->name != "unknown") return cause;
  }
  return Cause{"rank_error", run.error.substr(0, run.error.find('\n'))};
}

/// The report of a plan that is not run.
VerifyReport refused(const Plan& plan, const VerifyOptions& options, std::vector<Problem> problems) {
  return {.plan = plan, .format = options.format, .schedule = options.schedule, .problems = std::move(problems)};
}

}  // namespace

VerifyReport verify(const RunnablePlan& plan, const VerifyOptions& options) {
  VerifyReport report{.plan = plan.plan(), .format = options.format, .schedule = options.schedule};
  report.threads = options.schedule ? 1 : make_executor(options.threads)->threads();
  Session session(plan, options);
  report.reference_seconds = session.reference().seconds;
  RunResult run = session.run(session.sharded());
  judge_run(session, run, report);
  if (report.verdict == Verdict::mismatch) report.first_divergence->cause = cause_of(plan, session, run, report);
  if (report.verdict == Verdict::pass && options.format == ops::Format::exact && options.require_features) {
    report.problems = idle_features(session.plan(), session.reference());
    if (!report.problems.empty()) report.verdict = Verdict::inconclusive;
  }
  if (run.stall) note_stall(std::move(*run.stall), report);
  return report;
}

VerifyReport verify(const Plan& plan, const VerifyOptions& options) {
  Runnable runnable = make_runnable(plan);
  if (!runnable.plan) return refused(plan, options, std::move(runnable.problems));
  return verify(*runnable.plan, options);
}

Proof prove(const RunnablePlan& plan, const VerifyOptions& options) {
  if (options.format == ops::Format::exact) return {.algebra = verify(plan, options), .rounding = {}};
  VerifyOptions float_options = options;
  std::mutex progress;  // both call it
  if (options.progress) {
    float_options.progress = [&](const Progress& now) {
      const std::lock_guard lock(progress);
      options.progress(now);
    };
  }
  VerifyOptions exact_options = float_options;
  // Where its verdict counts, the algebra is right.
  float_options.diagnose = false;
  exact_options.format = ops::Format::exact;
  exact_options.taps = nullptr;
  // The rounding needs nothing of the algebra's verdict, and the algebra's reference keeps but one core busy for much
  // of its time.
  std::future<VerifyReport> rounding = std::async(beside(options), [&] { return verify(plan, float_options); });
  Proof proof{.algebra = verify(plan, exact_options), .rounding = {}};
  if (proof.algebra.verdict != Verdict::pass) return proof;
  proof.rounding = rounding.get();
  if (proof.rounding->verdict == Verdict::pass && (options.amplification || options.max_amplification)) {
    VerifyOptions measured = options;
    measured.taps = nullptr;
    proof.amplification = measure_amplification(plan, measured);
  }
  return proof;
}

Proof prove(const Plan& plan, const VerifyOptions& options) {
  Runnable runnable = make_runnable(plan);
  if (!runnable.plan) return {.algebra = refused(plan, options, std::move(runnable.problems)), .rounding = {}};
  return prove(*runnable.plan, options);
}

}  // namespace shardproof
