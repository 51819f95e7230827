// Holds a plan's claims to its quantities.
#pragma once

#include <string>
#include <vector>

#include "emu/paper/quantities.h"
#include "emu/plan/plan.h"

namespace shardproof {

enum class ClaimVerdict {
  holds,
  holds_if,  ///< under the condition that the arithmetic names
  fails,
  unverified,  ///< needs what the plan does not say, or a run
};

/// "holds", "holds if", "fails", "unverified".
const char* to_string(ClaimVerdict verdict);

struct JudgedClaim {
  Claim claim;
  ClaimVerdict verdict = ClaimVerdict::unverified;
  /// In the claim's unit: the value that decides. Over ranks that is the largest for "<=", the smallest for ">=", and
  /// the one farthest from what is stated for "=" and "~". Not finite when unverified.
  double computed = 0;
  std::string arithmetic;  ///< one line
};

/// "~" means within this share of the stated value.
inline constexpr double kAboutTolerance = 0.15;

/// The factor that turns a number in this unit into the quantity's own ("GB" -> 1e9 bytes, "%" -> 0.01); 1 for words.
double unit_factor(const std::string& unit, Dimension dimension);

/// Every rank must keep the relation. Problems (an expression that cannot be read) are appended with the claim's field.
std::vector<JudgedClaim> judge_claims(const Quantities& quantities, std::vector<Problem>& problems);

}  // namespace shardproof
