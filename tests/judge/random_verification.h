// Verifies many plans drawn at random.
#pragma once

#include <cstdint>
#include <string>

#include "emu/judge/verify.h"
#include "ops/format.h"
#include "tests/support/random_plan.h"

namespace shardproof::testing {

/// The verdict with what is wrong, for a test's message.
std::string explain(const VerifyReport& report);

/// Verifies `count` random plans of consecutive seeds; fails the running test at the first that does not agree with the
/// reference, or when too few checks were conclusive.
void verify_random_plans(int count, std::uint64_t first_seed, ops::Format format);

/// The same of plans of one architecture.
void verify_random_family_plans(Drawn drawn, int count, std::uint64_t first_seed, ops::Format format);

/// The same of plans whose sequences are requests, half of them of the architectures in turn.
void verify_random_serving_plans(int count, std::uint64_t first_seed, ops::Format format);

}  // namespace shardproof::testing
