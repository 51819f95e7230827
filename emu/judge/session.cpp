#include "emu/judge/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include "collectives/errors.h"
#include "collectives/make_executor.h"
#include "emu/judge/judge.h"
#include "emu/run/cluster.h"
#include "emu/run/fault.h"
#include "emu/run/reduction.h"

namespace shardproof {
namespace {

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

ReduceOptions reduce_options(const Plan& plan, const VerifyOptions& options) {
  ReduceOptions reduction{.algorithm = options.all_reduce};
  if (plan.hardware) reduction.gpus_per_node = static_cast<int>(plan.hardware->gpus_per_node);
  // In exact a partial sum keeps every bit until it has been summed.
  if (options.format == ops::Format::exact) return reduction;
  if (options.wire) reduction.wire = rounding_of(*options.wire);
  if (options.accumulate) reduction.accumulate = rounding_of(*options.accumulate);
  return reduction;
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

}  // namespace

/// One run of the program.
struct Session::ProgramRun {
  const char* name = "";  ///< for Progress
  const Parallel& parallel;
  const Workload& workload;
  const RoutingReplay* replay = nullptr;
  FaultInjector* fault = nullptr;
};

std::launch beside(const VerifyOptions& options) {
  const bool one_thread = options.schedule || make_executor(options.threads)->threads() == 1;
  return one_thread ? std::launch::deferred : std::launch::async | std::launch::deferred;
}

Session::Session(const RunnablePlan& plan, const VerifyOptions& options)
    : plan_(plan), options_(options), reference_(options.prepared) {
  if (reference_ == nullptr) {
    made_.emplace(prepare_reference(plan.plan(), options.format, options.weights,
                                    [&](const TapId& tap) { tap_complete("reference", tap); }));
    reference_ = &*made_;
  }
  if (reference_->format != options.format) {
    throw std::invalid_argument(fmt::format("verify: the reference was prepared in {}, the run is in {}",
                                            ops::to_string(reference_->format), ops::to_string(options.format)));
  }
  choices_ = choices_of(reference_->expected);
}

/// One call of the user's callback at a time, for a layer when its last tap is complete.
void Session::tap_complete(const char* run, const TapId& tap) {
  if (!options_.progress || tap.kind != TapKind::moe_residual) return;
  const std::lock_guard lock(progress_mutex_);
  options_.progress({run, tap.layer, static_cast<int>(plan().model.layers.size())});
}

template <class T>
void Session::run_ranks_in(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster) {
  TransformerProgram<T> program{.model = plan().model,
                                .batch = reference_->batch,
                                .weights = reference_->store<T>(),
                                .format = options_.format,
                                .deployment = deploy(plan().model, run.parallel, run.workload),
                                .replay = run.replay,
                                .reduction = reduce_options(plan(), options_),
                                .fault = observers.fault};
  if (observers.fault != nullptr) edit_deployment(*observers.fault, program.deployment);
  const std::unique_ptr<Executor> executor = make_executor(options_.threads, options_.schedule);
  program.threads_per_rank = std::max(1, executor->threads() / cluster.size());
  cluster.run(
      *executor, [&](Rank& rank) { return run_transformer<T>(rank, program); }, observers);
}

void Session::run_ranks(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster) {
  if (ops::computes_in_double(options_.format)) {
    run_ranks_in<double>(run, observers, cluster);
  } else {
    run_ranks_in<float>(run, observers, cluster);
  }
}

RunResult Session::run_program(const ProgramRun& run) {
  const auto start = std::chrono::steady_clock::now();
  Cluster cluster(run.parallel);
  TapCollector collector(reference_->expected, cluster.mesh(),
                         {.ordered_ids = options_.format == ops::Format::exact,
                          .completed = [&](const ExpectedTap& tap) { tap_complete(run.name, *tap.id); }});
  std::string error;
  try {
    run_ranks(run, {.taps = &collector, .fault = run.fault, .keep_calls = true}, cluster);
  } catch (const RankError& thrown) {
    rethrow_if_out_of_memory(thrown);
    error = thrown.what();
  }
  RunResult result{collector.finish(), collector.unexpected(), sum_collectives(cluster), std::move(error)};
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

// The two runs share nothing but what they read.
Runs Session::run_both(const RoutingReplay* replay) {
  const bool exact = options_.format == ops::Format::exact;
  const auto run_unsharded = [&] {
    if (exact) return RunResult{.outcomes = std::vector<TapOutcome>(reference_->expected.all().size())};
    Workload whole = plan().workload;
    whole.microbatches = 1;
    return run_program({.name = "unsharded", .parallel = Parallel{}, .workload = whole, .replay = replay});
  };
  std::future<RunResult> unsharded = std::async(exact ? std::launch::deferred : beside(options_), run_unsharded);
  Runs runs;
  runs.sharded = run_program({.name = "sharded",
                              .parallel = plan().parallel,
                              .workload = plan().workload,
                              .replay = replay,
                              .fault = options_.fault});
  runs.sharded_seconds = runs.sharded.seconds;
  runs.unsharded = unsharded.get();
  runs.replayed = replay != nullptr;
  return runs;
}

Runs Session::run() {
  Runs runs = run_both(nullptr);
  const ExpectedTaps& expected = reference_->expected;
  const bool differs =
      any_choice_differs(expected, runs.unsharded.outcomes) || any_choice_differs(expected, runs.sharded.outcomes);
  if (!differs || options_.format == ops::Format::exact) return runs;
  const double first_seconds = runs.sharded_seconds;
  runs = run_both(&choices_);
  runs.sharded_seconds += first_seconds;
  return runs;
}

void Session::repeat(const Runs& runs, TapSink& sink) {
  try {
    Cluster cluster(plan().parallel);
    run_ranks({.name = "sharded",
               .parallel = plan().parallel,
               .workload = plan().workload,
               .replay = runs.replayed ? &choices_ : nullptr},
              {.taps = &sink, .fault = options_.fault}, cluster);
  } catch (const CollectiveError&) {
  } catch (const RankError&) {
    // What the sink has until then has to do.
  }
}

}  // namespace shardproof
