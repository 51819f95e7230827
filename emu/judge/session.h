// The runs of one verification: the reference, the program on one rank, the program on the plan's ranks.
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
  std::string error;  ///< what a rank threw, when the run ended so
  double seconds = 0;
};

struct Runs {
  RunResult unsharded;  ///< in `exact`, where the bound is zero whatever it would say: none, without an error
  RunResult sharded;
  double sharded_seconds = 0;  ///< of every sharded run
  bool replayed = false;       ///< these are the second runs, with the reference's router choices
};

class Session {
 public:
  /// Makes the reference, unless options.prepared is one. Plan and options outlive the session. Throws
  /// std::invalid_argument when the reference was prepared in another format.
  Session(const RunnablePlan& plan, const VerifyOptions& options);

  const Plan& plan() const { return plan_.plan(); }
  const VerifyOptions& options() const { return options_; }
  const PreparedReference& reference() const { return *reference_; }

  /// Runs the program unsharded and sharded, side by side where there are threads; where a router's choice differs in a
  /// float format, both again with the reference's. Throws what Cluster::run throws, but a RankError.
  Runs run();

  /// The last sharded run once more, into this sink: runs are deterministic. An error ends it, and is dropped.
  void repeat(const Runs& runs, TapSink& sink);

 private:
  struct ProgramRun;

  void tap_complete(const char* run, const TapId& tap);
  void run_ranks(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster);
  template <class T>
  void run_ranks_in(const ProgramRun& run, const Cluster::Observers& observers, Cluster& cluster);
  RunResult run_program(const ProgramRun& run);
  Runs run_both(const RoutingReplay* replay);

  const RunnablePlan& plan_;
  const VerifyOptions& options_;
  std::optional<PreparedReference> made_;
  const PreparedReference* reference_ = nullptr;
  RoutingReplay choices_;  ///< the reference's
  std::mutex progress_mutex_;
};

/// How to start what may go on beside something else: now, on a thread of its own, or when it is waited for, which is
/// also what happens where no thread can be had.
std::launch beside(const VerifyOptions& options);

}  // namespace shardproof
