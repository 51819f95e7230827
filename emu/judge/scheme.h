// Verdicts on a program of one's own: the ranks, the taps and the proof of deadlock, without the transformer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "emu/judge/expected.h"
#include "emu/judge/report.h"
#include "emu/run/cluster.h"

namespace shardproof {

class ThreadRanks;

struct SchemeOptions {
  /// The largest error of a row, relative to its scale (ExpectedTap::scale), below 1: zeros are off by as much. Zero
  /// demands equality: give it data whose sums are exact, small integers for example.
  double bound = 0;
  int threads = 0;                             ///< 0: as many as the process may use
  std::optional<std::uint64_t> schedule = {};  ///< run on one thread in the order this seed gives
  /// Run it as often again, under the schedules of seeds 1, 2, ..., and hold every run to the first: bits and verdict.
  int schedules = 0;
  /// Where the ranks are threads of their own (thread_ranks.h), whose `program` is then what `program` returns. It
  /// outlives the verification; `threads` are those that help with what the ranks call. After a run that made no
  /// progress there is no other.
  ThreadRanks* thread_ranks = nullptr;
};

/// Runs the program on every rank of the mesh and holds what it taps to what is expected. Of the report, verdict, taps,
/// first_divergence with its cause, problems, notes and stall are set; all parts are kept until the verdict. A run that
/// depends on its schedule is a mismatch, and first_divergence then says where two runs differ (`expected` is what the
/// first had) unless a run was wrong by itself. What the program itself throws comes out as RankError.
///
/// In `parallel`, tp, cp, dp and pp make the world; ep and etp must divide tp * cp * dp, and edp follows from them.
/// Throws std::invalid_argument when they do not, a degree is below 1 or their product beyond kMaxSchemeRanks, the
/// bound is negative, 1 or more, or not finite, or the threads or schedules are negative.
VerifyReport verify_scheme(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                           const SchemeOptions& options = {});

inline constexpr std::int64_t kMaxSchemeRanks = 1 << 20;

}  // namespace shardproof
