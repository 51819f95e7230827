// How far rounding carries from end to end: reported beside the verdicts, no part of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/format.h"

namespace shardproof {

/// The taps of one kind, at the one that is amplified most. Errors are those of the worst row, relative to the row's
/// scale (ExpectedTap::scale), against an unsharded float64 reference of the whole model.
struct AmplifiedTap {
  std::string tap;
  std::string kind;
  double unsharded = 0;  ///< error of the program on one rank in the same format
  double sharded = 0;
  double amplification = 1;  ///< sharded over unsharded, of which one rounding is the least that counts
};

struct AmplificationReport {
  ops::Format format = ops::Format::fp32;
  std::vector<AmplifiedTap> kinds;  ///< in program order
  std::int64_t choices = 0;         ///< of routers
  std::int64_t differing = 0;       ///< of the sharded run's, from the reference's, where it had the inputs that it had
  double widest_margin = 0;         ///< of the reference's logits between experts that differ: how close a call it was
  bool replayed = false;            ///< some choice differed: measured with the reference's choices in their place
  std::string error;                ///< what ended a run
  std::optional<double> limit;      ///< that no tap may be amplified beyond

  const AmplifiedTap* worst() const {
    const auto found = std::ranges::max_element(kinds, {}, &AmplifiedTap::amplification);
    return found == kinds.end() ? nullptr : &*found;
  }
  bool beyond_limit() const { return limit && (!error.empty() || (worst() && !(worst()->amplification <= *limit))); }
};

}  // namespace shardproof
