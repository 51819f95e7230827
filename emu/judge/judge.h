// From outcomes to verdicts: one a tap, and one on the run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/exact_use.h"
#include "emu/judge/expected.h"
#include "emu/judge/report.h"

namespace shardproof {

/// What a verdict rests on: a run that has ended, and what it is held to. What is given for each tap is in the order of
/// `expected`.
struct Evidence {
  const ExpectedTaps& expected;
  ops::Format format = ops::Format::exact;
  std::span<const SumBits> sums;  ///< in `exact`: what the reference's sums need
  std::span<const TapOutcome> outcomes;
  std::vector<Problem> problems;            ///< of the run itself: what a rank threw
  std::span<const std::string> unexpected;  ///< taps that nothing is expected of
  std::string_view remedy;                  ///< what would make the reference prove something, after "; "
  bool stalled = false;                     ///< the run did not end: that explains what is missing
  bool failed = false;                      ///< a rank threw: that explains it too, where nothing else is wrong
};

/// Fills in the report's taps, first divergence, problems and verdict. A tap that differs is a mismatch, or missing;
/// where the difference may have another reason than a wrong run (from the first sum that its budget does not hold, or
/// the first expected value that is not finite), and where agreement would prove nothing, it is inconclusive. A missing
/// tap stays missing. The run is a mismatch when its first divergence proves that; it passes when every tap does and
/// there is no problem.
void judge(const Evidence& evidence, VerifyReport& report);

/// What becomes of a judged report when the run did not end: the verdict is that. The first divergence stays if a tap
/// was wrong, and a note says whether it came before the stall.
void note_stall(Stall stall, VerifyReport& report);

}  // namespace shardproof
