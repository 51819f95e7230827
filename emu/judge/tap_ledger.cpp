#include "emu/judge/tap_ledger.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "emu/plan/random.h"

namespace shardproof {
namespace {

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

/// Of two blocks one of which lists its rows.
bool share_row(const Block& a, const Block& b) {
  const auto rows_of = [](const Block& block) {
    std::vector<std::int64_t> rows = block.row_list;
    for (std::int64_t i = 0; rows.empty() && i < block.rows.count; ++i) rows.push_back(block.rows.begin + i);
    std::ranges::sort(rows);
    return rows;
  };
  const std::vector<std::int64_t> one = rows_of(a), other = rows_of(b);
  std::vector<std::int64_t> both;
  std::ranges::set_intersection(one, other, std::back_inserter(both));
  return !both.empty();
}

std::string list_problem(const ExpectedTap& expected, const Placement& placement) {
  const std::span<const std::int64_t> list = placement.row_list;
  if (list.empty()) return {};
  if (std::ssize(list) != placement.row_part.count) {
    return fmt::format("a list of {} rows is placed as {}", list.size(), placement.row_part.count);
  }
  for (const std::int64_t row : list) {
    if (row < 0 || row >= expected.rows) {
      return fmt::format("row {} lies outside {} x {}", row, expected.rows, expected.cols);
    }
  }
  std::vector<std::int64_t> sorted(list.begin(), list.end());
  std::ranges::sort(sorted);
  const auto twice = std::ranges::adjacent_find(sorted);
  return twice == sorted.end() ? std::string() : fmt::format("row {} is in the list twice", *twice);
}

bool same_bits(std::span<const double> a, std::span<const double> b) {
  return std::ranges::equal(
      a, b, [](double x, double y) { return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y); });
}

}  // namespace

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

template WorstElement compare(const ExpectedTap&, const Placement&, ops::MatrixView<const float>, double);
template WorstElement compare(const ExpectedTap&, const Placement&, ops::MatrixView<const double>, double);

Block block_of(const Placement& placement) {
  return {placement.row_part, placement.col_part, {placement.row_list.begin(), placement.row_list.end()}};
}

std::string to_string(const Block& block) {
  const std::string cols = fmt::format("columns {}..{}", block.cols.begin, block.cols.end());
  if (!block.row_list.empty()) return fmt::format("{} rows from a list, {}", block.row_list.size(), cols);
  return fmt::format("rows {}..{}, {}", block.rows.begin, block.rows.end(), cols);
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
  if (std::string problem = list_problem(expected, placement); !problem.empty()) return problem;
  // Written so that no sum can overflow.
  const auto outside = [](const Range& part, std::int64_t extent) {
    return part.begin < 0 || part.count < 0 || part.begin > extent || part.count > extent - part.begin;
  };
  if ((placement.row_list.empty() && outside(row_part, expected.rows)) || outside(col_part, expected.cols)) {
    return fmt::format("{} rows from {} and {} columns from {} reach outside {} x {}", row_part.count, row_part.begin,
                       col_part.count, col_part.begin, expected.rows, expected.cols);
  }
  return {};
}

std::string group_problem(const Placement& placement, int rank, int world) {
  const std::span<const int> list = placement.partial_ranks;
  if (list.empty()) return {};
  if (!placement.partial.empty()) return "partial sums lie along axes or on ranks of a list, not both";
  const std::set<int> ranks(list.begin(), list.end());
  if (ranks.size() != list.size() || *ranks.begin() < 0 || *ranks.rbegin() >= world || !ranks.contains(rank)) {
    return fmt::format("partial sums of ranks {}: each is one of 0 to {}, once, and this one is among them",
                       fmt::join(list, ", "), world - 1);
  }
  return {};
}

KeptValues TapLedger::kept(const Block& block, const HeldPart& part) const {
  const auto found = blocks_.find(block);
  if (found == blocks_.end()) return nullptr;
  for (const auto& [rank, held] : found->second) {
    // An integer and a number may have the same bits.
    if (held.hash == part.hash && held.squares == part.squares) return held.values;
  }
  return nullptr;
}

void TapLedger::add_partial_sum(PartialSum part) {
  outcome.seen = true;
  partials_.push_back(std::move(part));
}

void TapLedger::note_worst(const WorstElement& worst, int rank) {
  if (worst.measure > 0) {
    WorstElement& mine = outcome.rank_worst[rank];
    if (worst.measure > mine.measure) mine = worst;
  }
  // The first row of the worst error, and of two errors of one element one by its bits: the outcome does not depend on
  // who came first.
  const auto order = [](const WorstElement& element) {
    return std::tuple(element.row, element.col, std::bit_cast<std::uint64_t>(element.got));
  };
  const WorstElement& seen = outcome.worst;
  if (worst.measure > seen.measure ||
      (worst.measure == seen.measure && worst.measure > 0 && order(worst) < order(seen))) {
    outcome.worst = worst;
  }
}

void TapLedger::keep_ids(const Placement& placement, int rank, std::vector<std::int32_t> values) {
  const auto [kept, fresh] = ids_.try_emplace(block_of(placement), rank, values);
  if (!fresh && rank < kept->second.first) kept->second = {rank, std::move(values)};
}

/// What no run has counts as present.
void TapLedger::begin_covering(const ExpectedTap& expected) {
  covered_.assign(static_cast<std::size_t>(expected.size()), 0);
  for (std::int64_t row = 0; row < expected.rows; ++row) {
    if (expected.is_due(row)) continue;
    std::fill_n(covered_.begin() + row * expected.cols, expected.cols, std::uint8_t{1});
    covered_count_ += expected.cols;
  }
}

/// Marks a block as present; false when part of it was there already.
bool TapLedger::cover(const ExpectedTap& expected, const Placement& placement) {
  if (covered_.empty()) begin_covering(expected);
  bool fresh = true;
  for (std::int64_t i = 0; i < placement.row_part.count; ++i) {
    const auto marks = std::span(covered_).subspan(
        static_cast<std::size_t>(placement.row(i) * expected.cols + placement.col_part.begin),
        static_cast<std::size_t>(placement.col_part.count));
    const std::int64_t unmarked = std::ranges::count(marks, 0);
    fresh = fresh && unmarked == placement.col_part.count;
    covered_count_ += unmarked;
    std::ranges::fill(marks, std::uint8_t{1});
  }
  return fresh;
}

/// The partial sums of one block from one group are one part, summed in rank order; its ranks share its error. Every
/// member hands in one.
void TapLedger::add_partial_sums(const ExpectedTap& expected, double bound) {
  // Those of a rank stay in the order of its program.
  std::ranges::stable_sort(partials_, {}, &PartialSum::rank);
  std::map<Block, std::map<std::vector<int>, Members>> sums;  // by group
  for (const PartialSum& partial : partials_) {
    const auto [place, first] = sums[partial.block][partial.group].try_emplace(partial.rank, &partial);
    if (!first && !same_bits(*place->second->values, *partial.values)) {
      note_problem(partial.rank, "a rank handed in two partial sums, with different bits: " + to_string(partial.block));
    }
  }
  for (const auto& [block, groups] : sums) {
    const bool whole = blocks_.contains(block);
    for (const auto& [group, members] : groups) {
      for (const auto& [rank, partial] : members) {
        if (!whole) break;
        note_problem(rank, "some ranks handed in partial sums, and others the block itself: " + to_string(block));
      }
      if (members.size() == group.size()) {
        add_group(expected, block, group, members, bound);
        continue;
      }
      for (const int rank : group) {
        if (members.contains(rank)) continue;
        absences_["members of a group never handed in their partial sum of " + to_string(block)].insert(rank);
      }
    }
  }
}

void TapLedger::add_group(const ExpectedTap& expected, const Block& block, const std::vector<int>& group,
                          const Members& members, double bound) {
  std::vector<double> sum = *members.begin()->second->values;
  for (auto member = std::next(members.begin()); member != members.end(); ++member) {
    std::ranges::transform(sum, *member->second->values, sum.begin(), std::plus{});
  }
  const Placement placement = block.in(expected);
  const auto rows = static_cast<ops::Index>(placement.row_part.count);
  const auto cols = static_cast<ops::Index>(placement.col_part.count);
  const WorstElement worst = compare<double>(expected, placement, {sum.data(), rows, cols}, bound);
  HeldPart held{.values = std::make_shared<const std::vector<double>>(std::move(sum))};
  for (const double value : *held.values) {
    held.hash = mix64(held.hash ^ std::bit_cast<std::uint64_t>(value));
    held.squares += value * value;
  }
  for (const auto& [rank, partial] : members) {
    note_worst(worst, rank);
    held.replicas = partial->replicas;
    // Groups beside one another have sums of their own, which are replicas.
    blocks_[block].try_emplace(rank, held);
    outcome.partial_sums.push_back({rank, placement, block.row_list, partial->values, group});
  }
  cover(expected, placement);
}

/// Two different blocks that share an element.
void TapLedger::find_overlaps() {
  std::int64_t elements = 0;
  for (const auto& [block, holders] : blocks_) {
    elements += block.rows.count * block.cols.count;
  }
  if (elements == covered_count_) return;
  for (auto one = blocks_.begin(); one != blocks_.end(); ++one) {
    for (auto other = std::next(one); other != blocks_.end(); ++other) {
      const Block& a = one->first;
      const Block& b = other->first;
      const auto meet = [](const Range& x, const Range& y) {
        return x.begin < y.end() && y.begin < x.end() && x.count > 0 && y.count > 0;
      };
      const bool rows = a.row_list.empty() && b.row_list.empty() ? meet(a.rows, b.rows) : share_row(a, b);
      if (!rows || !meet(a.cols, b.cols)) continue;
      for (const auto* holders : {&one->second, &other->second}) {
        for (const auto& [rank, held] : *holders) {
          note_problem(rank, fmt::format("two different blocks overlap: {}, and {}", to_string(a), to_string(b)));
        }
      }
      return;
    }
  }
}

void TapLedger::find_absent_replicas(const Mesh& mesh) {
  for (const auto& [block, holders] : blocks_) {
    for (const auto& [holder, held] : holders) {
      if (held.replicas.empty()) continue;
      for (const int rank : mesh.group(held.replicas, holder)) {
        if (!holders.contains(rank)) absences_["replicas never handed in " + to_string(block)].insert(rank);
      }
    }
  }
}

/// Of the ranks that hold the block, those that have other bits than most (than the lowest rank's, of equally many),
/// and where the first of them differs.
void TapLedger::fold_replicas(const Block& block, const std::map<int, HeldPart>& holders, const ExpectedTap& expected) {
  std::map<std::uint64_t, int> counts;
  for (const auto& [rank, held] : holders) ++counts[held.hash];
  if (counts.size() < 2) return;
  auto most = holders.begin();
  for (auto holder = holders.begin(); holder != holders.end(); ++holder) {
    if (counts[holder->second.hash] > counts[most->second.hash]) most = holder;
  }
  for (const auto& [rank, held] : holders) {
    if (held.hash == most->second.hash) continue;
    outcome.odd_replicas.push_back(rank);
    if (outcome.odd_element || held.values == nullptr || most->second.values == nullptr) continue;
    const std::vector<double>&own = *held.values, &others = *most->second.values;
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (std::bit_cast<std::uint64_t>(own[i]) == std::bit_cast<std::uint64_t>(others[i])) continue;
      const Placement placement = block.in(expected);
      const auto at = static_cast<std::int64_t>(i);
      outcome.odd_element = OddElement{.rank = rank,
                                       .others = most->first,
                                       .row = placement.row(at / block.cols.count),
                                       .col = block.cols.begin + at % block.cols.count,
                                       .value = own[i],
                                       .value_of_others = others[i]};
      break;
    }
  }
}

void TapLedger::fold_blocks(const ExpectedTap& expected) {
  double squares = 0;
  for (const auto& [block, holders] : blocks_) {
    const auto add_place = [&](std::int64_t place) {
      outcome.bits = mix64(outcome.bits ^ static_cast<std::uint64_t>(place));
    };
    std::ranges::for_each(block.places(), add_place);
    std::ranges::for_each(block.row_list, add_place);
    outcome.bits = mix64(outcome.bits ^ holders.begin()->second.hash);
    squares += holders.begin()->second.squares;
    for (const auto& [rank, held] : holders) outcome.holders.insert(rank);
    fold_replicas(block, holders, expected);
  }
  std::vector<int>& odd = outcome.odd_replicas;
  outcome.replicas_equal = odd.empty();
  std::ranges::sort(odd);
  odd.erase(std::unique(odd.begin(), odd.end()), odd.end());
  outcome.norm = std::sqrt(squares);
  for (const auto& [block, kept] : ids_) {
    if (outcome.ids.empty()) outcome.ids.assign(static_cast<std::size_t>(expected.size()), -1);
    const Placement placement = block.in(expected);
    for (std::int64_t i = 0; i < block.rows.count; ++i) {
      std::copy_n(kept.second.begin() + i * block.cols.count, block.cols.count,
                  outcome.ids.begin() + placement.row(i) * expected.cols + block.cols.begin);
    }
  }
}

/// What is wrong, the one of the lowest rank first, whatever came first; where nothing is, what is missing.
void TapLedger::note_problems(const ExpectedTap& expected) {
  const auto choose = [&](const auto& found) {
    const auto& [problem, ranks] =
        *std::ranges::min_element(found, {}, [](const auto& entry) { return *entry.second.begin(); });
    outcome.problem = problem;
    outcome.problem_ranks.assign(ranks.begin(), ranks.end());
  };
  if (!problems_.empty()) return choose(problems_);
  outcome.absent = expected.size() - covered_count_;
  outcome.absent_ranks = !absences_.empty();
  if (outcome.absent_ranks) {
    choose(absences_);
  } else if (!outcome.seen) {
    outcome.problem = "no rank produced it";
  } else if (outcome.absent > 0) {
    const auto first = covered_.empty() ? 0 : std::ranges::find(covered_, 0) - covered_.begin();
    outcome.problem = fmt::format("{} of {} elements were produced by no rank, the first at row {}, column {}",
                                  outcome.absent, expected.size(), first / expected.cols, first % expected.cols);
  }
}

void TapLedger::finish(const ExpectedTap& expected, const Mesh& mesh, double bound) {
  add_partial_sums(expected, bound);
  find_overlaps();
  find_absent_replicas(mesh);
  fold_blocks(expected);
  note_problems(expected);
}

}  // namespace shardproof
