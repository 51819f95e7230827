// Random correct programs: groups of any shape, any operations, run under a random schedule. Every result is checked.
#pragma once

#include <cstdint>

namespace shardproof::testing {

/// Generates the program of that seed, runs it, and checks every result and that nothing is thrown (with EXPECT_*).
void run_generated_program(std::uint64_t seed);

/// The first seed: SHARDPROOF_SEED from the environment, else 1.
std::uint64_t first_seed();

}  // namespace shardproof::testing
