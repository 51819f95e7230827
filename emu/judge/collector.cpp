#include "emu/judge/collector.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <set>
#include <span>
#include <type_traits>
#include <utility>

#include "emu/judge/tap_ledger.h"
#include "emu/plan/random.h"

namespace shardproof {
namespace {

template <class T>
std::uint64_t bits_of(T value) {
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<std::uint64_t>(value);
  } else {
    return std::bit_cast<std::uint32_t>(value);
  }
}

// Of all bits of a part, in row-major order. Both are chains in which each step waits for the one before: side by side
// they take the time of one.
template <class T>
HeldPart digest(ops::MatrixView<const T> part) {
  HeldPart result;
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const T value : part.row(i)) {
      result.hash = mix64(result.hash ^ bits_of(value)) + 0x9e3779b97f4a7c15U;
      result.squares += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  return result;
}

template <class T>
KeptValues in_doubles(ops::MatrixView<const T> part) {
  auto values = std::make_shared<std::vector<double>>();
  values->reserve(static_cast<std::size_t>(part.size()));
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const T value : part.row(i)) values->push_back(static_cast<double>(value));
  }
  return values;
}

/// What is expected is known in numbers of 53 bits, which tell no larger integer from its neighbours.
std::string integer_problem(ops::MatrixView<const std::int64_t> part) {
  constexpr std::int64_t kLimit = std::int64_t{1} << std::numeric_limits<double>::digits;
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const std::int64_t value : part.row(i)) {
      if (value >= kLimit || value <= -kLimit) {
        return fmt::format("{} is an integer of more than 53 bits, which are not told apart", value);
      }
    }
  }
  return {};
}

/// A row of ids is right when it holds the expected ids, each as often, in any order unless `in_order`.
template <class T>
WorstElement compare_ids(const ExpectedTap& expected, const Placement& placement, ops::MatrixView<const T> part,
                         bool in_order) {
  for (ops::Index i = 0; i < part.rows; ++i) {
    const std::int64_t row = placement.row(i);
    const std::span<const T> ids = part.row(i);
    std::multiset<double> wanted;
    for (std::int64_t col = 0; col < expected.cols; ++col) wanted.insert(expected.at(row, col));
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const std::int64_t col = placement.col_part.begin + static_cast<std::int64_t>(j);
      const double want = expected.at(row, col);
      const auto found = wanted.find(static_cast<double>(ids[j]));
      if (found == wanted.end() || (in_order && static_cast<double>(ids[j]) != want)) {
        const double infinite = std::numeric_limits<double>::infinity();
        return {infinite, 0, infinite, row, col, want, static_cast<double>(ids[j])};
      }
      wanted.erase(found);
    }
  }
  return {};
}

}  // namespace

TapCollector::TapCollector(const ExpectedTaps& expected, const Mesh& mesh, CollectorOptions options)
    : expected_(expected), mesh_(mesh), options_(std::move(options)) {
  for (std::size_t i = 0; i < expected.all().size(); ++i) ledgers_.push_back(std::make_unique<TapLedger>());
}

TapCollector::~TapCollector() = default;

void TapCollector::note_unexpected(const TapKey& key) {
  const std::lock_guard lock(mutex_);
  unexpected_.insert(name_of(key));
}

template <class T>
void TapCollector::collect(GlobalRank rank_id, const TapKey& key, const Placement& placement,
                           ops::MatrixView<const T> part) {
  constexpr bool kIds = std::is_integral_v<T>;
  const int index = expected_.find(key);
  if (index < 0) return note_unexpected(key);
  const auto tap = static_cast<std::size_t>(index);
  const ExpectedTap& expected = expected_.all()[tap];
  TapLedger& ledger = *ledgers_[tap];
  const int rank = to_int(rank_id);
  std::string problem = shape_problem(expected, placement, part.rows, part.cols);
  if (problem.empty() && kIds != expected.traits.ids && options_.judge == nullptr && !options_.any_type) {
    problem = kIds ? "ids were tapped where values are expected" : "values were tapped where ids are expected";
  }
  if (problem.empty()) problem = group_problem(placement, rank, mesh_.world());
  if constexpr (std::is_same_v<T, std::int64_t>) {
    if (problem.empty()) problem = integer_problem(part);
  }
  if (!problem.empty()) {
    const std::lock_guard lock(ledger.mutex);
    ledger.outcome.seen = true;
    return ledger.note_problem(rank, problem);
  }
  if (placement.is_partial_sum()) {
    std::vector<int> group(placement.partial_ranks.begin(), placement.partial_ranks.end());
    std::ranges::sort(group);
    if (group.empty()) group = mesh_.group(placement.partial, rank);
    TapLedger::PartialSum sum{rank, block_of(placement), std::move(group), placement.replicas, in_doubles(part)};
    const std::lock_guard lock(ledger.mutex);
    return ledger.add_partial_sum(std::move(sum));
  }

  WorstElement worst;
  if (options_.judge == nullptr) {
    if constexpr (kIds) {
      worst = compare_ids(expected, placement, part, options_.ordered_ids);
    } else {
      worst = compare(expected, placement, part, options_.bound);
    }
  }
  HeldPart held = digest(part);
  held.replicas = placement.replicas;
  const Block block = block_of(placement);
  if (options_.keep_parts) {
    {
      const std::lock_guard lock(ledger.mutex);
      held.values = ledger.kept(block, held);
    }
    if (held.values == nullptr) held.values = in_doubles(part);
  }
  std::vector<std::int32_t> ids;
  for (ops::Index i = 0; i < part.rows && kIds; ++i) {
    for (const T value : part.row(i)) ids.push_back(static_cast<std::int32_t>(value));
  }
  bool complete = false;
  {
    const std::lock_guard lock(ledger.mutex);
    ledger.note_worst(worst, rank);
    complete = ledger.add(expected, placement, block, rank, std::move(held), [&] {
      if (options_.judge != nullptr) options_.judge->put(tap, placement, part);
    });
    if (kIds) ledger.keep_ids(placement, rank, std::move(ids));
  }
  if (!complete) return;
  if (options_.judge != nullptr) options_.judge->complete(tap);
  if (options_.completed) options_.completed(expected);
}

void TapCollector::tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) {
  std::visit([&](const auto& values) { collect(rank, key, placement, values); }, part);
}

std::vector<TapOutcome> TapCollector::finish() {
  if (options_.judge != nullptr) options_.judge->run_ended();
  std::vector<TapOutcome> outcomes;
  for (std::size_t i = 0; i < ledgers_.size(); ++i) {
    TapLedger& ledger = *ledgers_[i];
    const ExpectedTap& expected = expected_.all()[i];
    ledger.finish(expected, mesh_, options_.bound);
    if (options_.judge != nullptr) {
      for (const auto& [block, holders] : ledger.blocks()) {
        const WorstElement worst = options_.judge->worst_in(i, block.in(expected));
        for (const auto& [rank, held] : holders) ledger.note_worst(worst, rank);
      }
    }
    if (options_.keep_parts) {
      for (const auto& [block, holders] : ledger.blocks()) {
        for (const auto& [rank, held] : holders) {
          ledger.outcome.parts.push_back({rank, block.in(expected), block.row_list, held.values});
        }
      }
    }
    outcomes.push_back(std::move(ledger.outcome));
  }
  return outcomes;
}

std::vector<std::string> TapCollector::unexpected() const {
  const std::lock_guard lock(mutex_);
  return {unexpected_.begin(), unexpected_.end()};
}

}  // namespace shardproof
