// Valid plans drawn at random, for property tests.
#pragma once

#include <cstdint>
#include <string>

#include "emu/plan/plan.h"

namespace shardproof::testing {

/// The seed of this process' property tests: SHARDPROOF_TEST_SEED if set, else a fixed one.
std::uint64_t property_seed();

/// A valid plan of at most `max_world` ranks: all of tp, dp, pp, ep, etp, sp; uneven layers, replicas without a
/// sequence, expert counts that are no power of two, 1 <= top_k <= experts, fewer kv heads than tp; small widths. A
/// pure function of the seed.
Plan random_plan(std::uint64_t seed, int max_world = 64);

/// The plan's degrees, model and workload in one line, for messages.
std::string describe(const Plan& plan);

}  // namespace shardproof::testing
