// A plan of a test's own that is known to be runnable.
#pragma once

#include <stdexcept>
#include <utility>

#include "emu/plan/runnable.h"

namespace shardproof::testing {

/// Throws std::invalid_argument with the first problem when it is not.
inline RunnablePlan runnable(Plan plan) {
  Runnable made = make_runnable(std::move(plan));
  if (!made.plan) throw std::invalid_argument(made.problems.front().field + ": " + made.problems.front().message);
  return std::move(*made.plan);
}

}  // namespace shardproof::testing
