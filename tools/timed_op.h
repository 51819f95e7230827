// Times an op here, on one thread, beside what the machine can do at most.
#pragma once

#include <string>
#include <vector>

#include "ops/format.h"
#include "tools/rank_ops.h"

namespace shardproof::tools {

struct TimingOptions {
  int repetitions = 5;
  double most_seconds = 1;  ///< that one call may take: of what is longer, a part is run
  double memory = 0;        ///< bytes that the operands may take
};

struct TimedOp {
  CountedOp op;
  ops::Cost cost;                     ///< of a call, of what is moved here
  std::vector<double> seconds;        ///< a call's in each repetition: time that the thread ran
  std::vector<double> limit_seconds;  ///< what the machine needs at least, measured beside each
  double part = 1;                    ///< that was run, of the rows or, of attention, heads; the times are for all
  std::string wrong;                  ///< what the check of the result found; then nothing is timed
  std::string left_out;               ///< why it was not run

  bool timed() const { return !seconds.empty(); }
  double median_seconds() const;
  /// Share of the limit that it reaches, the median over the repetitions.
  double of_limit() const;
  /// The limit is that of arithmetic, not of memory.
  bool limited_by_arithmetic = false;
};

/// Checks the result once, then times. The limit is the longer of two: the flops at the speed of independent
/// multiply-adds, the bytes at the speed of reads (of products and attention) or copies over as much memory.
TimedOp time_op(const CountedOp& op, ops::Format format, const TimingOptions& options);

/// A part of the op that takes at most about so many seconds, and which share it is.
OpShape part_within(const OpShape& shape, ops::Format format, double most_seconds, double& share);

}  // namespace shardproof::tools
