// Everything that can be said of a plan without running it, as one report.
#pragma once

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
};

/// Never throws for what a plan says. A claim that cannot be read is a problem, and the rest is judged all the same.
CheckReport check(const Plan& plan);

/// The JSON document, version 1 ("shardproof.check/1").
std::string to_json(const CheckReport& report);

/// For a review or a pull request.
std::string to_markdown(const CheckReport& report);

/// A value with max, min and mean where ranks differ: "2.212 GB (2.081-2.212, mean 2.147 GB)".
std::string value_text(const QuantityValue& value);

}  // namespace shardproof
