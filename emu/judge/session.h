// The runs of one verification: what they are held to, and the program on the plan's ranks.
#pragma once

#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/prepared.h"
#include "emu/judge/report.h"
#include "emu/judge/verify.h"
#include "emu/plan/runnable.h"
#include "emu/run/transformer.h"

namespace shardproof {

/// A run of the program and what came of it.
struct RunResult {
  std::vector<TapOutcome> outcomes;  ///< one for each expected tap
  std::vector<std::string> unexpected;
  std::vector<CollectiveReport> collectives;
  std::string error;           ///< what a rank threw, when the run ended so
  std::optional<Stall> stall;  ///< when it did not end; what was tapped before is there
  double seconds = 0;
};

/// How the program is run.
struct ProgramRun {
  const char* name = "sharded";  ///< for Progress
  Parallel parallel;
  Workload workload;
  const RoutingReplay* replay = nullptr;  ///< outlives the run
  FaultInjector* fault = nullptr;
};

class Session {
 public:
  /// Makes the reference, unless options.prepared is one. Plan and options outlive the session. Throws
  /// std::invalid_argument when the reference was prepared in another format.
  Session(const RunnablePlan& plan, const VerifyOptions& options);
  /// Against this reference, which outlives the session.
  Session(const RunnablePlan& plan, const VerifyOptions& options, const PreparedReference& reference);

  const Plan& plan() const { return plan_.plan(); }
  const VerifyOptions& options() const { return options_; }
  const PreparedReference& reference() const { return *reference_; }

  /// The program on the plan's ranks, with the options' fault.
  ProgramRun sharded() const;
  /// On one rank, the batch at once.
  ProgramRun unsharded() const;

  /// Throws what Cluster::run throws, but errors of ranks and collectives. Different runs may go on at the same time.
  RunResult run(const ProgramRun& run);

  /// Once more, into this sink: runs are deterministic. False: an error ended it, which is dropped.
  bool repeat(const ProgramRun& run, TapSink& sink);

 private:
  void tap_complete(const char* run, const TapId& tap);
  void run_ranks(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster);
  template <class T>
  void run_ranks_in(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster);
  RunResult run_collected(const ProgramRun& run, const CollectorOptions& options);
  RunResult run_held_to_own_inputs(const ProgramRun& run);

  const RunnablePlan& plan_;
  const VerifyOptions& options_;
  std::optional<PreparedReference> made_;
  const PreparedReference* reference_ = nullptr;
  std::mutex progress_mutex_;
};

/// How to start what may go on beside something else: now, on a thread of its own, or when it is waited for, which is
/// also what happens where no thread can be had.
std::launch beside(const VerifyOptions& options);

}  // namespace shardproof
