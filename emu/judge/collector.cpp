#include "emu/judge/collector.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "emu/plan/random.h"

namespace shardproof {
namespace {

/// Which elements a part is: its ranges, and the list of its rows where it has one.
struct Block {
  Range rows;
  Range cols;
  std::vector<std::int64_t> row_list;

  std::array<std::int64_t, 4> places() const { return {rows.begin, rows.count, cols.begin, cols.count}; }
  bool operator<(const Block& other) const {
    return std::tuple(places(), row_list) < std::tuple(other.places(), other.row_list);
  }
  Placement in(const ExpectedTap& tap) const { return {tap.rows, tap.cols, rows, cols, {}, row_list}; }
};

Block block_of(const Placement& placement) {
  return {placement.row_part, placement.col_part, {placement.row_list.begin(), placement.row_list.end()}};
}

template <class T>
std::uint64_t bits_of(T value) {
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<std::uint64_t>(value);
  } else {
    return std::bit_cast<std::uint32_t>(value);
  }
}

/// Of all bits of a part, in row-major order.
struct Digest {
  std::uint64_t hash = 0;
  double squares = 0;  ///< the sum of squares
};

// Both are chains in which each step waits for the one before: side by side they take the time of one.
template <class T>
Digest digest(ops::MatrixView<const T> part) {
  Digest result;
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const T value : part.row(i)) {
      result.hash = mix64(result.hash ^ bits_of(value)) + 0x9e3779b97f4a7c15U;
      result.squares += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  return result;
}

double relative_error(double got, double expected, double scale) {
  const double difference = std::abs(got - expected);
  if (!(difference <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
  if (difference == 0) return 0;
  return scale > 0 ? difference / scale : std::numeric_limits<double>::infinity();
}

double absolute_error(double got, double expected) {
  return relative_error(got, expected, 1);
}

/// The largest |got - expected| of a row; infinite or NaN when one of them is.
template <class T>
double largest_difference(std::span<const T> got, const double* expected) {
  // Magnitudes are ordered as their bits are, NaN after infinity.
  std::int64_t largest = 0;
  for (std::size_t j = 0; j < got.size(); ++j) {
    largest = std::max(largest, std::bit_cast<std::int64_t>(std::abs(static_cast<double>(got[j]) - expected[j])));
  }
  return std::bit_cast<double>(largest);
}

template <class T>
WorstElement compare(const ExpectedTap& expected, const Placement& placement, ops::MatrixView<const T> part,
                     double bound) {
  WorstElement worst;
  for (ops::Index i = 0; i < part.rows; ++i) {
    const std::int64_t row = placement.row(i);
    const double scale = expected.scale[static_cast<std::size_t>(row)];
    const std::span<const T> values = part.row(i);
    const double* wanted = expected.values.data() + row * expected.cols + placement.col_part.begin;
    // Most rows hold nothing worse, which takes no division to see. An infinity may be the one that is expected.
    const double largest = largest_difference(values, wanted);
    if (std::isfinite(largest) && relative_error(largest, 0, scale) <= worst.measure) continue;
    for (std::size_t j = 0; j < values.size(); ++j) {
      const std::int64_t col = placement.col_part.begin + static_cast<std::int64_t>(j);
      const double want = wanted[j];
      const auto got = static_cast<double>(values[j]);
      if (got == want) continue;
      const double relative = relative_error(got, want, scale);
      if (relative > worst.measure) worst = {absolute_error(got, want), bound * scale, relative, row, col, want, got};
    }
  }
  return worst;
}

/// A row of ids is right when it holds the expected ids, each as often, in any order unless `in_order`.
WorstElement compare_ids(const ExpectedTap& expected, const Placement& placement,
                         ops::MatrixView<const std::int32_t> part, bool in_order) {
  for (ops::Index i = 0; i < part.rows; ++i) {
    const std::int64_t row = placement.row(i);
    const std::span<const std::int32_t> ids = part.row(i);
    std::multiset<double> wanted;
    for (std::int64_t col = 0; col < expected.cols; ++col) wanted.insert(expected.at(row, col));
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const std::int64_t col = placement.col_part.begin + static_cast<std::int64_t>(j);
      const double want = expected.at(row, col);
      const auto found = wanted.find(ids[j]);
      if (found == wanted.end() || (in_order && ids[j] != want)) {
        const double infinite = std::numeric_limits<double>::infinity();
        return {infinite, 0, infinite, row, col, want, static_cast<double>(ids[j])};
      }
      wanted.erase(found);
    }
  }
  return {};
}

std::string shape_problem(const ExpectedTap& expected, const Placement& placement, std::int64_t rows,
                          std::int64_t cols) {
  if (placement.rows != expected.rows || placement.cols != expected.cols) {
    return fmt::format("the tensor is placed as {} x {}, expected {} x {}", placement.rows, placement.cols,
                       expected.rows, expected.cols);
  }
  const Range& row_part = placement.row_part;
  const Range& col_part = placement.col_part;
  if (row_part.count != rows || col_part.count != cols) {
    return fmt::format("a part of {} x {} is placed as {} x {}", rows, cols, row_part.count, col_part.count);
  }
  for (const std::int64_t row : placement.row_list) {
    if (row < 0 || row >= expected.rows) {
      return fmt::format("row {} lies outside {} x {}", row, expected.rows, expected.cols);
    }
  }
  if (row_part.begin < 0 || row_part.end() > expected.rows || col_part.begin < 0 || col_part.end() > expected.cols) {
    return fmt::format("rows {}..{} and columns {}..{} reach outside {} x {}", row_part.begin, row_part.end(),
                       col_part.begin, col_part.end(), expected.rows, expected.cols);
  }
  return {};
}

}  // namespace

struct TapCollector::State {
  struct PartialSum {
    Placement placement;
    ops::Matrix<double> values;
  };

  std::mutex mutex;
  TapOutcome outcome;
  std::map<Block, std::map<int, std::uint64_t>> blocks;  // who holds it -> the hash of its bits
  std::map<Block, double> squares;
  std::vector<std::uint8_t> covered;  // per element
  std::int64_t covered_count = 0;
  std::map<int, std::vector<PartialSum>> partials;  // by rank

  void note_problem(const std::string& problem, int rank) {
    if (outcome.problem.empty()) outcome.problem = problem;
    if (outcome.problem == problem) outcome.problem_ranks.push_back(rank);
  }

  void note_worst(const WorstElement& worst, int rank) {
    WorstElement& mine = outcome.rank_worst[static_cast<std::size_t>(rank)];
    if (worst.measure > mine.measure) mine = worst;
    // The first row of the worst error, so that the outcome does not depend on who came first.
    const WorstElement& seen = outcome.worst;
    if (worst.measure > seen.measure || (worst.measure == seen.measure && worst.measure > 0 &&
                                         std::tie(worst.row, worst.col) < std::tie(seen.row, seen.col))) {
      outcome.worst = worst;
    }
  }

  /// Marks a block as present; false when part of it was there already.
  bool cover(const ExpectedTap& expected, const Placement& placement) {
    if (covered.empty()) covered.assign(static_cast<std::size_t>(expected.size()), 0);
    bool fresh = true;
    for (std::int64_t i = 0; i < placement.row_part.count; ++i) {
      const auto marks = std::span(covered).subspan(
          static_cast<std::size_t>(placement.row(i) * expected.cols + placement.col_part.begin),
          static_cast<std::size_t>(placement.col_part.count));
      const std::int64_t unmarked = std::ranges::count(marks, 0);
      fresh = fresh && unmarked == placement.col_part.count;
      covered_count += unmarked;
      std::ranges::fill(marks, std::uint8_t{1});
    }
    return fresh;
  }

  template <class T>
  void keep_partial_sum(const Placement& placement, ops::MatrixView<const T> part, int rank) {
    ops::Matrix<double> copy(part.rows, part.cols);
    for (ops::Index i = 0; i < part.rows; ++i) std::ranges::copy(part.row(i), copy.row(i).begin());
    const std::lock_guard lock(mutex);
    outcome.seen = true;
    partials[rank].push_back({placement, std::move(copy)});
  }

  void keep_ids(const ExpectedTap& expected, const Placement& placement, ops::MatrixView<const std::int32_t> part) {
    if (outcome.ids.empty()) outcome.ids.assign(static_cast<std::size_t>(expected.size()), -1);
    for (ops::Index i = 0; i < part.rows; ++i) {
      const std::int64_t begin = placement.row(i) * expected.cols + placement.col_part.begin;
      std::ranges::copy(part.row(i), outcome.ids.begin() + begin);
    }
  }

  /// Notes a part; true when nothing of the tap is missing any more. A block that nobody brought before is handed to
  /// `keep`.
  template <class T, class Keep>
  bool add_part(const ExpectedTap& expected, const Placement& placement, ops::MatrixView<const T> part, int rank,
                const WorstElement& worst, const Keep& keep) {
    const auto [hash, sum_of_squares] = digest(part);
    const std::lock_guard lock(mutex);
    outcome.seen = true;
    note_worst(worst, rank);
    std::map<int, std::uint64_t>& holders = blocks[block_of(placement)];
    holders.emplace(rank, hash);
    if (holders.size() > 1) return false;
    squares[block_of(placement)] = sum_of_squares;
    const std::int64_t before = covered_count;
    if (cover(expected, placement)) {
      keep();
    } else {
      note_problem(
          fmt::format("rows {}..{}, columns {}..{} overlap another rank's different block", placement.row_part.begin,
                      placement.row_part.end(), placement.col_part.begin, placement.col_part.end()),
          rank);
    }
    if constexpr (std::is_same_v<T, std::int32_t>) keep_ids(expected, placement, part);
    return covered_count == expected.size() && covered_count > before;
  }

  void note_absence(const ExpectedTap& expected) {
    outcome.absent = expected.size() - covered_count;
    if (!outcome.seen) {
      outcome.problem = "no rank produced it";
    } else if (outcome.absent > 0) {
      const auto first = std::ranges::find(covered, 0) - covered.begin();
      outcome.problem = fmt::format("{} of {} elements were produced by no rank, the first at row {}, column {}",
                                    outcome.absent, expected.size(), first / expected.cols, first % expected.cols);
    }
  }

  /// Hash, norm and replicas of all blocks.
  void fold_blocks() {
    std::vector<int>& odd = outcome.odd_replicas;
    for (const auto& [block, holders] : blocks) {
      const auto add_place = [&](std::int64_t place) {
        outcome.bits = mix64(outcome.bits ^ static_cast<std::uint64_t>(place));
      };
      std::ranges::for_each(block.places(), add_place);
      std::ranges::for_each(block.row_list, add_place);
      outcome.bits = mix64(outcome.bits ^ holders.begin()->second);
      for (const auto& [rank, hash] : holders) {
        if (hash != holders.begin()->second) odd.push_back(rank);
      }
    }
    outcome.replicas_equal = odd.empty();
    std::ranges::sort(odd);
    odd.erase(std::unique(odd.begin(), odd.end()), odd.end());
    double sum = 0;
    for (const auto& [block, part] : squares) sum += part;
    outcome.norm = std::sqrt(sum);
  }

  /// The partial sums of one block from one group are one part, summed in rank order; its ranks share its error.
  void add_partial_sums(const ExpectedTap& expected, const Mesh& mesh, double bound) {
    struct Sum {
      ops::Matrix<double> values;
      std::vector<int> ranks;
    };
    std::map<Block, std::map<int, Sum>> sums;  // by block and first rank of the group
    for (auto& [rank, parts] : partials) {
      for (PartialSum& partial : parts) {
        const int group = mesh.group(*partial.placement.partial, rank).front();
        Sum& sum = sums[block_of(partial.placement)][group];
        if (sum.ranks.empty()) {
          sum.values = std::move(partial.values);
        } else {
          std::ranges::transform(sum.values.span(), partial.values.span(), sum.values.span().begin(), std::plus{});
        }
        sum.ranks.push_back(rank);
      }
    }
    for (const auto& [block, groups] : sums) {
      const Placement whole = block.in(expected);
      for (const auto& [group, sum] : groups) {
        const WorstElement worst = compare<double>(expected, whole, sum.values.view(), bound);
        for (const int rank : sum.ranks) note_worst(worst, rank);
      }
      if (!cover(expected, whole))
        note_problem("partial sums overlap another block", groups.begin()->second.ranks.front());
    }
  }
};

TapCollector::TapCollector(const ExpectedTaps& expected, const Mesh& mesh, CollectorOptions options)
    : expected_(expected), mesh_(mesh), options_(std::move(options)) {
  for (std::size_t i = 0; i < expected.all().size(); ++i) {
    states_.push_back(std::make_unique<State>());
    states_.back()->outcome.rank_worst.resize(static_cast<std::size_t>(mesh.world()));
  }
}

TapCollector::~TapCollector() = default;

void TapCollector::note_unexpected(const TapKey& key) {
  const std::lock_guard lock(mutex_);
  const std::string name = key.name.empty() ? to_string(key.id) : std::string(key.name);
  if (std::ranges::find(unexpected_, name) == unexpected_.end()) unexpected_.push_back(name);
}

template <class T>
void TapCollector::collect(GlobalRank rank_id, const TapKey& key, const Placement& placement,
                           ops::MatrixView<const T> part) {
  const int index = expected_.find(key);
  if (index < 0) return note_unexpected(key);
  const ExpectedTap& expected = expected_.all()[static_cast<std::size_t>(index)];
  State& state = *states_[static_cast<std::size_t>(index)];
  const int rank = to_int(rank_id);
  const std::string problem = shape_problem(expected, placement, part.rows, part.cols);
  if (!problem.empty()) {
    const std::lock_guard lock(state.mutex);
    state.outcome.seen = true;
    state.note_problem(problem, rank);
    return;
  }
  if (placement.partial) return state.keep_partial_sum(placement, part, rank);

  WorstElement worst;
  if (options_.judge == nullptr) {
    if constexpr (std::is_same_v<T, std::int32_t>) {
      worst = compare_ids(expected, placement, part, options_.ordered_ids);
    } else {
      worst = compare(expected, placement, part, options_.bound);
    }
  }
  const auto tap = static_cast<std::size_t>(index);
  const bool complete = state.add_part(expected, placement, part, rank, worst, [&] {
    if (options_.judge != nullptr) options_.judge->put(tap, placement, part);
  });
  if (!complete) return;
  if (options_.judge != nullptr) options_.judge->complete(tap);
  if (options_.completed) options_.completed(expected);
}

void TapCollector::tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) {
  std::visit([&](const auto& values) { collect(rank, key, placement, values); }, part);
}

std::vector<TapOutcome> TapCollector::finish() {
  std::vector<TapOutcome> outcomes;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    State& state = *states_[i];
    const ExpectedTap& expected = expected_.all()[i];
    state.add_partial_sums(expected, mesh_, options_.bound);
    if (options_.judge != nullptr) {
      for (const auto& [block, holders] : state.blocks) {
        const WorstElement worst = options_.judge->worst_in(i, block.in(expected));
        for (const auto& [rank, hash] : holders) state.note_worst(worst, rank);
      }
    }
    state.fold_blocks();
    if (state.outcome.problem.empty()) state.note_absence(expected);
    std::ranges::sort(state.outcome.problem_ranks);
    outcomes.push_back(std::move(state.outcome));
  }
  return outcomes;
}

std::vector<std::string> TapCollector::unexpected() const {
  const std::lock_guard lock(mutex_);
  return unexpected_;
}

}  // namespace shardproof
