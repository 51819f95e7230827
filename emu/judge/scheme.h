// Verdicts on a program of one's own: the ranks, the taps and the proof of deadlock, without the transformer.
#pragma once

#include <cstdint>
#include <optional>

#include "emu/judge/expected.h"
#include "emu/judge/report.h"
#include "emu/run/cluster.h"

namespace shardproof {

struct SchemeOptions {
  /// The largest error of a row, relative to its scale (ExpectedTap::scale). Zero demands equality: give it data whose
  /// sums are exact, small integers for example.
  double bound = 0;
  int threads = 0;                        ///< 0: as many as the process may use
  std::optional<std::uint64_t> schedule;  ///< run on one thread in the order this seed gives
};

/// Runs the program on every rank of the mesh and holds what it taps to what is expected. Of the report, verdict, taps,
/// first_divergence, problems and stall are set. What the program itself throws comes out as RankError.
///
/// In `parallel`, tp, cp, dp and pp make the world; ep and etp must divide tp * cp * dp, and edp follows from them.
/// Throws std::invalid_argument when they do not, or the bound is negative or not finite.
VerifyReport verify_scheme(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                           const SchemeOptions& options = {});

}  // namespace shardproof
