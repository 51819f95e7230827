#include "emu/judge/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#include "collectives/errors.h"
#include "collectives/make_executor.h"
#include "emu/diagnose/capture.h"
#include "emu/diagnose/diagnose.h"
#include "emu/judge/judge.h"
#include "emu/judge/prepared.h"
#include "emu/run/cluster.h"
#include "emu/run/fault.h"
#include "emu/run/reduction.h"
#include "emu/run/transformer.h"

namespace shardproof {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One call of the user's callback at a time.
class ProgressReporter {
 public:
  ProgressReporter(const VerifyOptions& options, const ModelConfig& model)
      : callback_(options.progress), layers_(static_cast<int>(model.layers.size())) {}

  /// Reports a layer when its last tap is complete.
  void tap_complete(const char* run, const TapId& tap) {
    if (!callback_ || tap.kind != TapKind::moe_residual) return;
    const std::lock_guard lock(mutex_);
    callback_({run, tap.layer, layers_});
  }

 private:
  const std::function<void(const Progress&)>& callback_;
  int layers_;
  std::mutex mutex_;
};

/// How to start what may go on beside something else: now, on a thread of its own, or when it is waited for, which is
/// also what happens where no thread can be had.
std::launch beside(const VerifyOptions& options) {
  const bool one_thread = options.schedule || make_executor(options.threads)->threads() == 1;
  return one_thread ? std::launch::deferred : std::launch::async | std::launch::deferred;
}

/// A run of the program and what came of it.
struct RunResult {
  std::vector<TapOutcome> outcomes;
  std::vector<std::string> unexpected;
  std::vector<CollectiveReport> collectives;
  std::string error;  ///< what a rank threw, when the run ended so
};

std::vector<CollectiveReport> sum_collectives(const Cluster& cluster) {
  struct Sum {
    double calls = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::pair<std::string, std::string>, Sum> sums;
  for (int rank = 0; rank < cluster.size(); ++rank) {
    for (const CollectiveRecord& record : cluster.world().records(GlobalRank{rank})) {
      Sum& sum = sums[{std::string(record.axis), std::string(to_string(record.operation))}];
      // Every member of a group records its call; send and recv are each their own.
      sum.calls += is_point_to_point(record.operation) ? 1 : 1.0 / record.group_size;
      sum.bytes += static_cast<std::int64_t>(record.bytes);
    }
  }
  std::vector<CollectiveReport> reports;
  for (const auto& [key, sum] : sums) {
    reports.push_back(
        {.operation = key.second, .group = key.first, .calls = std::llround(sum.calls), .bytes = sum.bytes});
  }
  return reports;
}

/// One plan's runs: what they share.
struct Bench {
  const Plan& plan;
  const VerifyOptions& options;
  const PreparedReference& prepared;
  ProgressReporter& progress;
};

ReduceOptions reduce_options(const Plan& plan, const VerifyOptions& options) {
  ReduceOptions reduction{.algorithm = options.all_reduce};
  if (plan.hardware) reduction.gpus_per_node = static_cast<int>(plan.hardware->gpus_per_node);
  // In exact an addend keeps every bit until it has been summed.
  if (options.format == ops::Format::exact) return reduction;
  if (options.wire) reduction.wire = rounding_of(*options.wire);
  if (options.accumulate) reduction.accumulate = rounding_of(*options.accumulate);
  return reduction;
}

template <class T>
void run_ranks(const Bench& bench, const Workload& workload, const RoutingReplay* replay,
               const Cluster::Observers& observers, Cluster& cluster) {
  TransformerProgram<T> program{.model = bench.plan.model,
                                .batch = bench.prepared.batch,
                                .weights = bench.prepared.store<T>(),
                                .format = bench.options.format,
                                .deployment = deploy(bench.plan.model, cluster.mesh().parallel(), workload),
                                .replay = replay,
                                .reduction = reduce_options(bench.plan, bench.options),
                                .fault = observers.fault};
  if (observers.fault != nullptr) edit_deployment(*observers.fault, program.deployment);
  const std::unique_ptr<Executor> executor = make_executor(bench.options.threads, bench.options.schedule);
  program.threads_per_rank = std::max(1, executor->threads() / cluster.size());
  cluster.run(
      *executor, [&](Rank& rank) { return run_transformer<T>(rank, program); }, observers);
}

/// That is the machine's fault, not the plan's.
void rethrow_if_out_of_memory(const RankError& error) {
  try {
    if (error.nested_ptr()) error.rethrow_nested();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (...) {
    // Anything else is the run's.
  }
}

template <class T>
RunResult run_program(const Bench& bench, const Parallel& parallel, const Workload& workload,
                      const RoutingReplay* replay, FaultInjector* fault, const char* run) {
  Cluster cluster(parallel);
  TapCollector collector(bench.prepared.expected, cluster.mesh(),
                         {.ordered_ids = bench.options.format == ops::Format::exact,
                          .completed = [&](const ExpectedTap& tap) { bench.progress.tap_complete(run, *tap.id); }});
  std::string error;
  try {
    run_ranks<T>(bench, workload, replay, {.taps = &collector, .fault = fault, .keep_calls = true}, cluster);
  } catch (const RankError& thrown) {
    rethrow_if_out_of_memory(thrown);
    error = thrown.what();
  }
  return {collector.finish(), collector.unexpected(), sum_collectives(cluster), error};
}

/// Runs the sharded program once more, keeps what the ranks made of the tap that went wrong, and names the cause. Runs
/// are deterministic, so it is the same wrong tap.
template <class T>
Cause find_cause(const Bench& bench, const RoutingReplay* replay, const Divergence& divergence) {
  const int wrong = bench.prepared.expected.find(divergence.tap);
  CapturingSink sink(*bench.prepared.expected.all().at(static_cast<std::size_t>(wrong)).id);
  try {
    Cluster cluster(bench.plan.parallel);
    run_ranks<T>(bench, bench.plan.workload, replay, {.taps = &sink, .fault = bench.options.fault}, cluster);
  } catch (const CollectiveError&) {
  } catch (const RankError&) {
    // What was captured until then has to do.
  }
  return diagnose({.plan = bench.plan,
                   .reference = bench.prepared,
                   .divergence = divergence,
                   .parts = sink.parts(),
                   .norm_parts = sink.norm_parts()});
}

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

template <class T>
void run_and_judge(const Plan& plan, const VerifyOptions& options, VerifyReport& report) {
  ProgressReporter progress(options, plan.model);
  std::optional<PreparedReference> made;
  if (options.prepared == nullptr) {
    made.emplace(prepare_reference(plan, options.format, options.weights,
                                   [&](const TapId& tap) { progress.tap_complete("reference", tap); }));
  }
  const PreparedReference& prepared = options.prepared != nullptr ? *options.prepared : *made;
  if (prepared.format != options.format) {
    throw std::invalid_argument(fmt::format("verify: the reference was prepared in {}, the run is in {}",
                                            ops::to_string(prepared.format), ops::to_string(options.format)));
  }
  const ExpectedTaps& expected = prepared.expected;
  report.reference_seconds = prepared.seconds;

  const Bench bench{plan, options, prepared, progress};
  const RoutingReplay choices = choices_of(expected);
  Workload whole = plan.workload;
  whole.microbatches = 1;
  const bool exact = options.format == ops::Format::exact;
  // In `exact` the bound is zero whatever the unsharded run says.
  const auto unsharded = [&](const RoutingReplay* replay) {
    if (exact) return RunResult{.outcomes = std::vector<TapOutcome>(expected.all().size())};
    return run_program<T>(bench, Parallel{}, whole, replay, nullptr, "unsharded");
  };
  const auto sharded = [&](const RoutingReplay* replay) {
    const Clock::time_point start = Clock::now();
    RunResult result = run_program<T>(bench, plan.parallel, plan.workload, replay, options.fault, "sharded");
    report.sharded_seconds += seconds_since(start);
    return result;
  };

  // The two runs share nothing but what they read.
  const auto run_both = [&](const RoutingReplay* replay) {
    std::future<RunResult> base = std::async(exact ? std::launch::deferred : beside(options), unsharded, replay);
    RunResult result = sharded(replay);
    return std::pair(base.get(), std::move(result));
  };

  auto [base, result] = run_both(nullptr);
  const bool differs = any_choice_differs(expected, base.outcomes) || any_choice_differs(expected, result.outcomes);
  if (differs && !exact) {
    std::tie(base, result) = run_both(&choices);
    report.routing.replayed = true;
  }

  report.tokens_per_expert = count_tokens(plan, expected, result.outcomes);
  report.collectives = std::move(result.collectives);
  const bool replayed = report.routing.replayed;
  const std::vector<double> bounds = error_bounds(expected, base.outcomes, options.format);
  report.routing = judge_routing(expected, bounds, result.outcomes, options.format);
  report.routing.replayed = replayed;
  for (const ExpectedTap& tap : expected.all()) report.elements += std::ssize(tap.values);
  if (exact) report.exact_use = exact_use(expected, prepared.sums);
  judge(evidence_of(prepared, bounds, base, result), report);
  if (report.verdict != Verdict::mismatch) return;
  if (!result.error.empty()) {
    report.first_divergence->cause = Cause{"rank_error", result.error.substr(0, result.error.find('\n'))};
  } else if (options.diagnose) {
    report.first_divergence->cause = find_cause<T>(bench, replayed ? &choices : nullptr, *report.first_divergence);
  }
}

/// The report of a plan that is not run.
VerifyReport refused(const Plan& plan, const VerifyOptions& options, std::vector<Problem> problems) {
  return {.plan = plan, .format = options.format, .schedule = options.schedule, .problems = std::move(problems)};
}

}  // namespace

VerifyReport verify(const RunnablePlan& runnable, const VerifyOptions& options) {
  const Plan& plan = runnable.plan();
  VerifyReport report{.plan = plan, .format = options.format, .schedule = options.schedule};
  report.threads = options.schedule ? 1 : make_executor(options.threads)->threads();
  try {
    if (ops::computes_in_double(options.format)) {
      run_and_judge<double>(plan, options, report);
    } else {
      run_and_judge<float>(plan, options, report);
    }
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
