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
#include "emu/judge/rounding/op_rules.h"
#include "emu/judge/rounding/rounding_judge.h"
#include "emu/judge/shared_rows.h"
#include "emu/run/cluster.h"
#include "emu/run/fault.h"
#include "emu/run/reduction.h"
#include "emu/run/slot_board.h"

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

/// No memory, no threads, or weights that cannot be read: nothing of that is the plan's fault. The program itself
/// breaks contracts, which are logic errors.
void rethrow_what_is_not_the_plans(const RankError& error) {
  try {
    if (error.nested_ptr()) error.rethrow_nested();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const CollectiveError&) {
    // The run's, as is anything else.
  } catch (const std::runtime_error&) {
    throw;
  } catch (...) {
    // As above.
  }
}

/// Hands every tap to both.
class BothSinks final : public TapSink {
 public:
  BothSinks(TapSink& first, TapSink& second) : first_(first), second_(second) {}
  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override {
    const bool is_inner = key.name.empty() && tap_row(key.id.kind).inner;
    if (!is_inner || first_.inner()) first_.tap(rank, key, placement, part);
    if (!is_inner || second_.inner()) second_.tap(rank, key, placement, part);
  }
  bool inner() const override { return first_.inner() || second_.inner(); }

 private:
  TapSink& first_;
  TapSink& second_;
};

}  // namespace

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
}

Session::Session(const RunnablePlan& plan, const VerifyOptions& options, const PreparedReference& reference)
    : plan_(plan), options_(options), reference_(&reference) {}

ProgramRun Session::sharded() const {
  return {.name = "sharded", .parallel = plan().parallel, .workload = plan().workload, .fault = options_.fault};
}

ProgramRun Session::unsharded() const {
  Workload whole = plan().workload.whole();
  whole.microbatches = 1;
  return {.name = "unsharded", .parallel = Parallel{}, .workload = std::move(whole)};
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
  SlotBoard slots(run.parallel);
  program.slots = &slots;
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

RunResult Session::run_collected(const ProgramRun& run, const CollectorOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Cluster cluster(run.parallel);
  TapCollector collector(reference_->expected, cluster.mesh(), options);
  std::optional<BothSinks> both;
  if (options_.taps != nullptr && run.name == std::string_view("sharded")) both.emplace(collector, *options_.taps);
  TapSink* sink = both ? static_cast<TapSink*>(&*both) : &collector;
  std::optional<SharedRowsSink> with_shared;
  if (run.workload.serving && run.workload.serving->prefix_sharing) {
    sink = &with_shared.emplace(TokenMap(run.parallel, run.workload), *sink);
  }
  std::string error;
  std::optional<Stall> stall;
  try {
    run_ranks(run, {.taps = sink, .fault = run.fault, .keep_calls = true}, cluster);
  } catch (const RankError& thrown) {
    rethrow_what_is_not_the_plans(thrown);
    error = thrown.what();
  } catch (const CollectiveError& thrown) {
    stall = stall_of(thrown);
  }
  RunResult result{collector.finish(), collector.unexpected(), sum_collectives(cluster), std::move(error),
                   std::move(stall)};
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

RunResult Session::run_held_to_own_inputs(const ProgramRun& run) {
  const ExpectedTaps& taps = reference_->expected;
  const rounding::Rules rules(plan(), options_.format, *reference_->weights, reference_->batch, taps,
                              reduce_options(plan(), options_));
  rounding::RoundingJudge judge(rules);
  RunResult result = run_collected(
      run, {.judge = &judge, .completed = [&](const ExpectedTap& tap) { tap_complete(run.name, *tap.id); }});
  for (std::size_t tap = 0; tap < result.outcomes.size(); ++tap) {
    const rounding::Judged& judged = judge.judged(tap);
    TapOutcome& outcome = result.outcomes[tap];
    // The worst of all, where the collector was told of wrong ones only.
    outcome.worst = judged.worst;
    outcome.vacuous = judged.vacuous;
    outcome.undecided = judged.not_finite;
    if (!judged.done && !outcome.missing()) outcome.undecided = "what it is computed from is not complete";
  }
  return result;
}

RunResult Session::run(const ProgramRun& run) {
  if (reference_->held_to == HeldTo::own_inputs) return run_held_to_own_inputs(run);
  return run_collected(run, {.ordered_ids = options_.format == ops::Format::exact,
                             .completed = [&](const ExpectedTap& tap) { tap_complete(run.name, *tap.id); }});
}

bool Session::repeat(const ProgramRun& run, TapSink& sink) {
  try {
    Cluster cluster(run.parallel);
    run_ranks(run, {.taps = &sink, .fault = run.fault}, cluster);
    return true;
  } catch (const CollectiveError&) {
  } catch (const RankError&) {
    // What the sink has until then has to do.
  }
  return false;
}

}  // namespace shardproof
