// One layout: does it fit, and how long does it take.
#pragma once

#include <string>

#include "emu/run/dry_run.h"
#include "emu/search/search.h"

namespace shardproof::searching {

/// Bytes of the weights of the rank that holds the most.
double weight_bytes(const Plan& plan);

/// The plan must be valid; it, its routing and the options outlive this.
class Evaluation {
 public:
  Evaluation(const Plan& plan, const StatedRouting& routing, const SearchOptions& options);

  /// Of the rank that holds the most, as `check` counts it.
  double memory_bytes() const { return memory_bytes_; }
  const std::string& memory_arithmetic() const { return memory_arithmetic_; }
  /// Everything but its place among others.
  TimedLayout timed() const;

 private:
  const Plan& plan_;
  const SearchOptions& options_;
  const StatedRouting& routing_;
  DryTraces prefill_;
  double memory_bytes_ = 0;
  std::string memory_arithmetic_;
};

/// What the loser spends beyond the best, and on what.
std::string loses_by(const TimedLayout& loser, const TimedLayout& best, const SearchOptions& options);

}  // namespace shardproof::searching
