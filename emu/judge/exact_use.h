// What a run in `exact` needed of a double's bits, and how much of the grid its data used.
//
// A verdict without a tolerance rests on both: every sum was exact in any order (reference/budget.h says why and from
// what), and the values that agree are not all alike.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/expected.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// A sum of the reference.
struct SumBits {
  std::string tap;   ///< that it goes into
  std::string kind;  ///< of the tap
  std::string sum;   ///< "q . k"
  int bits = 0;      ///< it needs; exact in any order when at most kSumBudget

  bool finite() const;
  bool operator==(const SumBits&) const = default;
};

/// Significant bits of a double.
inline constexpr int kSumBudget = 53;
/// A tap of at least kSpreadValues values should have kFewDistinct different ones.
inline constexpr std::int64_t kSpreadValues = 256;
inline constexpr std::int64_t kFewDistinct = 16;
/// At least this share of a tap's values should not be zero.
inline constexpr double kMostlyZero = 0.25;

/// How the values of one tap, or of all taps of one kind, lie on the grid of stored values (multiples of 2^-10).
struct GridUse {
  std::string tap;  ///< name or kind
  int tensors = 1;
  double least_nonzero = 0;  ///< share of values that are not zero, of the tensor that has the fewest
  double median_nonzero = 0;
  double most_nonzero = 0;
  std::int64_t distinct = 0;  ///< different values, of the tensor that has the fewest
  int bits = 0;               ///< of the largest value, in steps
};

struct ExactUse {
  std::vector<SumBits> sums;      ///< the widest of each sum in each kind of tap, in program order
  std::vector<GridUse> grid;      ///< one for each kind of tap, in program order; ids left out
  std::optional<SumBits> widest;  ///< of all sums
  /// Taps whose values are so few or so often zero that their agreement says little, one for each kind.
  std::vector<Problem> weak;
};

/// Adds a sum to those of a run, in program order; of the same sum in the same tap the wider stays.
void add_sum(std::vector<SumBits>& sums, const TapId& tap, std::string_view sum, int bits);

GridUse grid_use(const ExpectedTap& tap);
ExactUse exact_use(const ExpectedTaps& expected, const std::vector<SumBits>& sums);

/// The sums that need more than the budget, one problem a tap: which, how many bits, and what to change.
std::vector<Problem> beyond_budget(std::span<const SumBits> sums);

}  // namespace shardproof
