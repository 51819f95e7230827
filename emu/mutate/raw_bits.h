// The bits that every rank of a run tapped, without anybody's opinion of them.
//
// A mutant that leaves all of them as they are did nothing in that run: nobody could have seen it. That is decided
// here, apart from what collects and judges taps, so that a verifier that sees nothing cannot call what it misses
// equivalent.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/plan/runnable.h"

namespace shardproof {

/// Of each rank a hash of everything that it tapped, the inner taps too, in its order: which tap, where its part lies,
/// and its bits. None of a run that did not end.
using RawBits = std::optional<std::vector<std::uint64_t>>;

/// Runs the plan with options.fault, format and schedule.
RawBits raw_bits(const RunnablePlan& plan, const VerifyOptions& options, const PreparedReference& reference);

}  // namespace shardproof
