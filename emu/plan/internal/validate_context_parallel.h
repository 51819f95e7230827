// Of validate(): the rules of context parallelism, of prompts over cp and of caches over dcp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "emu/plan/plan.h"

namespace shardproof {

using ReportProblem = std::function<void(std::string field, std::string message)>;

/// The plan's degrees are at least 1, and so are the model's counts.
void validate_context_parallel(const Plan& plan, const ReportProblem& problem);

/// "3 or 6 would do": the divisors of count on both sides of the value.
std::string divisors_near(std::int64_t count, std::int64_t value);

}  // namespace shardproof
