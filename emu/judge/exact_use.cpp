#include "emu/judge/exact_use.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "emu/judge/judge.h"
#include "emu/reference/budget.h"

namespace shardproof {
namespace {

static_assert(kSumBudget == reference::kBudgetBits);

/// Different values, which are multiples of the step and at most `largest` in magnitude.
std::int64_t count_distinct(const std::vector<double>& values, double largest) {
  constexpr double kPerUnit = 1 / reference::kActivationStep;
  constexpr double kMarked = 1 << 21;  // steps up to which values are marked in a table
  if (largest * kPerUnit < kMarked) {
    const auto zero = static_cast<std::int64_t>(largest * kPerUnit);
    std::vector<std::uint8_t> seen(static_cast<std::size_t>(2 * zero + 1));
    for (const double value : values) {
      seen[static_cast<std::size_t>(zero + static_cast<std::int64_t>(value * kPerUnit))] = 1;
    }
    return std::ranges::count(seen, 1);
  }
  std::vector<double> sorted(values);
  std::ranges::sort(sorted);
  return std::ranges::distance(sorted.begin(), std::unique(sorted.begin(), sorted.end()));
}

const char* what_to_change(std::string_view sum) {
  return sum.ends_with("over the keys") ? "shorten the sequences (--sequence) or use smaller weights"
                                        : "use smaller weights or a smaller width (--scale)";
}

/// Why agreement with the tap says little; empty when it says enough. What says nothing at all is ExpectedTap::vacuous.
std::string weakness(const ExpectedTap& tap, const GridUse& use) {
  if (!tap.vacuous.empty()) return {};
  if (use.least_nonzero < kMostlyZero) {
    return fmt::format("only {:.1f} % of its values are not zero", 100 * use.least_nonzero);
  }
  if (std::ssize(tap.values) >= kSpreadValues && use.distinct < kFewDistinct) {
    return fmt::format("its {} values take {} different values", tap.values.size(), use.distinct);
  }
  return {};
}

}  // namespace

bool SumBits::finite() const {
  return bits != reference::kUnboundedBits;
}

void add_sum(std::vector<SumBits>& sums, const TapId& id, std::string_view sum, int bits) {
  const std::string tap = to_string(id);
  // The sums of a tap follow each other.
  for (auto known = sums.rbegin(); known != sums.rend() && known->tap == tap; ++known) {
    if (known->sum != sum) continue;
    known->bits = std::max(known->bits, bits);
    return;
  }
  sums.push_back({tap, std::string(tap_row(id.kind).name), std::string(sum), bits});
}

GridUse grid_use(const ExpectedTap& tap) {
  GridUse use{.tap = tap.name};
  if (tap.values.empty() || tap.vacuous == kNotFinite) return use;
  const auto zeros = std::ranges::count(tap.values, 0.0);
  const double share = 1 - static_cast<double>(zeros) / static_cast<double>(tap.values.size());
  use.least_nonzero = use.median_nonzero = use.most_nonzero = share;
  const double largest = reference::largest_magnitude(tap.values);
  use.distinct = count_distinct(tap.values, largest);
  use.bits = reference::bits_needed(largest, reference::kActivationStep);
  return use;
}

ExactUse exact_use(const ExpectedTaps& expected, const std::vector<SumBits>& sums) {
  ExactUse result;
  for (const SumBits& sum : sums) {
    if (!result.widest || sum.bits > result.widest->bits) result.widest = sum;
    const auto alike = std::ranges::find_if(
        result.sums, [&](const SumBits& known) { return known.sum == sum.sum && known.kind == sum.kind; });
    if (alike == result.sums.end()) {
      result.sums.push_back(sum);
    } else if (sum.bits > alike->bits) {
      *alike = sum;
    }
  }
  std::vector<std::vector<double>> shares;
  std::set<std::string> weak_kinds;
  for (const ExpectedTap& tap : expected.all()) {
    if (tap.traits.ids) continue;
    const GridUse use = grid_use(tap);
    const std::string& kind = tap.kind;
    auto known = std::ranges::find(result.grid, kind, &GridUse::tap);
    if (known == result.grid.end()) {
      known = result.grid.insert(known, use);
      known->tap = kind;
      known->tensors = 0;
      shares.emplace_back();
    }
    ++known->tensors;
    known->distinct = known->tensors == 1 ? use.distinct : std::min(known->distinct, use.distinct);
    known->bits = std::max(known->bits, use.bits);
    shares[static_cast<std::size_t>(known - result.grid.begin())].push_back(use.least_nonzero);
    const std::string weak = weakness(tap, use);
    if (!weak.empty() && weak_kinds.insert(kind).second) {
      result.weak.push_back({tap.name, weak + ": that they agree says little; use larger weights or another seed"});
    }
  }
  for (std::size_t i = 0; i < shares.size(); ++i) {
    std::ranges::sort(shares[i]);
    result.grid[i].least_nonzero = shares[i].front();
    result.grid[i].median_nonzero = shares[i][shares[i].size() / 2];
    result.grid[i].most_nonzero = shares[i].back();
  }
  return result;
}

std::vector<Problem> beyond_budget(std::span<const SumBits> sums) {
  std::vector<Problem> problems;
  for (const SumBits& sum : sums) {
    if (sum.bits <= kSumBudget || (!problems.empty() && problems.back().field == sum.tap)) continue;
    const std::string needs =
        sum.finite() ? fmt::format("needs {} bits, of which a double has {}", sum.bits, kSumBudget) : "is not finite";
    problems.push_back({sum.tap, fmt::format("its sum {} {}, so that exact arithmetic may depend on the order of "
                                             "addition from here on; {}",
                                             sum.sum, needs, what_to_change(sum.sum))});
  }
  return problems;
}

}  // namespace shardproof
