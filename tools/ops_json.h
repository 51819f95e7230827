// The timed ops of a rank as a document that reads as Google Benchmark's.
#pragma once

#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "tools/timed_op.h"

namespace shardproof::tools {

struct OpsReport {
  std::string plan;
  int rank = 0;
  std::string phase;
  ops::Format format{};
  std::vector<TimedOp> ops;
  std::vector<LeftOut> left_out;
  std::int64_t calls = 0;

  /// All calls of the timed ops, in one pass of the rank.
  double step_seconds() const;
  double step_flops() const;
};

/// shardproof.ops/1. A repetition is an entry of `benchmarks`, with cpu_time in ns, so that bench/compare.py and others
/// who read Google Benchmark's files read it.
std::string to_json(const OpsReport& report);

}  // namespace shardproof::tools
