// Everything that can be said of a plan without running it, as one report.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "emu/paper/claims.h"
#include "emu/paper/quantities.h"
#include "emu/plan/neighbours.h"
#include "emu/plan/plan.h"

namespace shardproof {

struct CheckReport {
  Plan plan;
  std::vector<Problem> problems;  ///< of the plan; with any, everything below but neighbours is empty
  Neighbours neighbours;          ///< valid plans nearest to an invalid one
  std::vector<RankFigures> ranks;
  struct Quantity {
    const QuantityDefinition* definition = nullptr;
    QuantityValue value;
  };
  std::vector<Quantity> quantities;  ///< those without arguments, in the order of quantity_definitions()
  std::vector<JudgedClaim> claims;
  /// Whether every rank's weights, cache and activations fit the hardware's memory; none where the plan states no
  /// memory.
  std::optional<bool> fits_memory;
  std::string memory_arithmetic;  ///< of the fullest rank
};

/// Never throws for what a plan says. A claim that cannot be read is a problem, and the rest is judged all the same.
CheckReport check(const Plan& plan);

/// A value with max, min and mean where ranks differ: "2.212 GB (2.081-2.212, mean 2.147 GB)".
std::string value_text(const QuantityValue& value);

}  // namespace shardproof
