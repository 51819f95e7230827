#include "emu/diagnose/scheme_cause.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/diagnose/signatures.h"
#include "emu/run/cluster.h"

namespace shardproof {
namespace {

using Rows = std::vector<WrongRow>;

/// A hypothesis is held to this at most, however wide the scheme's bound: under a wide one most would fit.
constexpr double kWidest = 0.05;

std::optional<Cause> value_cause(const Rows& rows, double tolerance) {
  const auto finite = [](double value) { return std::isfinite(value); };
  if (std::ranges::any_of(rows, [&](const WrongRow& row) { return !std::ranges::all_of(row.got, finite); })) {
    return Cause{"not_finite", fmt::format("values on {} are not finite", diagnosis::ranks_of(rows))};
  }
  if (all_zero(rows)) return Cause{"zero", fmt::format("every wrong value on {} is zero", diagnosis::ranks_of(rows))};
  if (const auto offset = constant_offset(rows, tolerance)) {
    return Cause{"constant_offset", fmt::format("every wrong row on {} is {:.6g} too large throughout",
                                                diagnosis::ranks_of(rows), *offset)};
  }
  return std::nullopt;
}

/// The size of a group, or its inverse. `all`: the ranks hold no row that is right, and more than zeros.
std::optional<Cause> ratio_cause(const Rows& rows, bool all, const Mesh& mesh, double tolerance) {
  std::map<double, std::string> names;
  for (const auto& [name, degree] : diagnosis::degrees(mesh.parallel())) {
    for (const double ratio : {static_cast<double>(degree), 1.0 / degree}) {
      names[ratio] += (names[ratio].empty() ? "" : " or ") + name;
    }
  }
  std::vector<double> candidates{2, 0.5};
  for (const auto& [ratio, name] : names) candidates.push_back(ratio);
  const auto ratio = constant_ratio(rows, candidates, tolerance);
  if (!ratio) return std::nullopt;
  const std::string name = *ratio > 1 ? "counted_n_times" : "averaged";
  const std::string text = fmt::format("every {}value on {} is {:.6g} times what it should be", all ? "" : "wrong ",
                                       diagnosis::ranks_of(rows), *ratio);
  const auto found = names.find(*ratio);
  if (!all || found == names.end()) return Cause{name, text};
  return Cause{
      name, fmt::format("{}, {}the size of {}: {}", text, *ratio < 1 ? "one over " : "", found->second,
                        *ratio > 1 ? "reduced once more than it should be, or not averaged" : "averaged, not summed")};
}

/// What the members of a group handed in as partial sums.
std::optional<Cause> partial_sums_cause(const ExpectedTap& expected, const SchemeParts& parts, double tolerance) {
  std::map<std::vector<int>, std::vector<const TapPart*>> groups;
  for (std::size_t i = 0; i < parts.partial_sums.size(); ++i) {
    groups[parts.groups[i]].push_back(&parts.partial_sums[i]);
  }
  for (const auto& [group, members] : groups) {
    if (group.size() < 2) continue;
    const auto is_whole = [&](const TapPart* part) {
      return wrong_rows(expected, std::span(part, 1), tolerance).empty();
    };
    if (std::ranges::all_of(members, is_whole)) {
      return Cause{"counted_n_times",
                   fmt::format("ranks {} each handed in the whole, which is no partial sum of theirs: "
                               "it is counted {} times",
                               fmt::join(group, ", "), group.size())};
    }
  }
  return std::nullopt;
}

/// What the ranks of a group hold adds up to what each should: nobody added it.
std::optional<Cause> unreduced_cause(const Rows& rows, std::span<const TapPart> parts, const Mesh& mesh,
                                     double tolerance) {
  using Place = std::tuple<int, std::int64_t, std::int64_t>;  // rank, row, first column
  std::map<Place, std::vector<double>> held;
  for (const TapPart& part : parts) {
    const auto width = static_cast<std::size_t>(part.placement.col_part.count);
    for (std::int64_t i = 0; i < part.placement.row_part.count; ++i) {
      const auto begin = part.values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * width);
      held[{part.rank, part.placement.row(i), part.placement.col_part.begin}].assign(
          begin, begin + static_cast<std::ptrdiff_t>(width));
    }
  }
  for (const Axis axis : kAxes) {
    if (mesh.degree(axis) < 2) continue;
    const auto sum_of_group = [&](const WrongRow& row) {
      std::vector<double> sum(row.got.size(), 0.0);
      for (const int member : mesh.group(axis, row.rank)) {
        const auto found = held.find({member, row.row, row.col});
        if (found == held.end() || found->second.size() != sum.size()) return std::vector<double>();
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += found->second[i];
      }
      return sum;
    };
    const bool adds_up =
        std::ranges::all_of(rows, [&](const WrongRow& row) { return close(sum_of_group(row), row.want, tolerance); });
    if (adds_up) {
      return Cause{"reduction_dropped",
                   fmt::format("what the ranks of a {} group hold adds up to what each of them should, "
                               "on {}: it was not reduced",
                               to_string(axis), diagnosis::ranks_of(rows))};
    }
  }
  return std::nullopt;
}

std::optional<Cause> order_cause(const Rows& rows, const ExpectedTap& expected, const Mesh& mesh, double tolerance) {
  if (const auto sources = row_sources(rows, expected, tolerance)) {
    return Cause{"rows_permuted",
                 fmt::format("{} rows on {} hold other rows' values: row {} that of row {}", rows.size(),
                             diagnosis::ranks_of(rows), rows.front().row, sources->front())};
  }
  for (const auto& [name, degree] : diagnosis::degrees(mesh.parallel())) {
    for (const std::int64_t parts : {std::int64_t{degree}, std::int64_t{2} * degree}) {
      if (parts > expected.cols || expected.cols % parts != 0) continue;
      const auto blocks = block_sources(rows, expected, expected.cols / parts, tolerance);
      if (!blocks) continue;
      for (std::size_t block = 0; block < blocks->size(); ++block) {
        if ((*blocks)[block] == static_cast<std::int64_t>(block)) continue;
        return Cause{"blocks_permuted",
                     fmt::format("of {} blocks of columns ({} = {}), block {} holds the values of block {} on {}",
                                 parts, name, degree, block, (*blocks)[block], diagnosis::ranks_of(rows))};
      }
    }
  }
  return std::nullopt;
}

/// Of the tensor, what should lie there.
std::vector<double> block_at(const ExpectedTap& expected, const Placement& place) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < place.row_part.count; ++i) {
    for (std::int64_t c = place.col_part.begin; c < place.col_part.end(); ++c) {
      values.push_back(expected.at(place.row(i), c));
    }
  }
  return values;
}

/// Every wrong block is the whole block that another rank should hold.
std::optional<Cause> other_block_cause(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance) {
  const auto shape = [](const TapPart& part) {
    return std::pair{part.placement.row_part.count, part.placement.col_part.count};
  };
  std::string shown;
  for (const TapPart& part : parts) {
    if (close(part.values, block_at(expected, part.placement), tolerance)) continue;
    const auto from = std::ranges::find_if(parts, [&](const TapPart& other) {
      return other.rank != part.rank && shape(other) == shape(part) &&
             close(part.values, block_at(expected, other.placement), tolerance);
    });
    if (from == parts.end()) return std::nullopt;
    if (shown.empty()) shown = fmt::format("rank {} holds the block that rank {} should", part.rank, from->rank);
  }
  if (shown.empty()) return std::nullopt;
  return Cause{"blocks_permuted", shown};
}

std::optional<Cause> shared_term_cause(const Rows& rows, double tolerance) {
  const auto offset = constant_row(rows, tolerance);
  if (!offset) return std::nullopt;
  const auto shown = std::span(*offset).first(std::min<std::size_t>(offset->size(), 4));
  return Cause{
      "constant_offset",
      fmt::format("every wrong row on {} is off by the same row, [{:.6g}{}]: a term that all rows share, as a "
                  "bias, is in it too often or not at all",
                  diagnosis::ranks_of(rows), fmt::join(shown, ", "), shown.size() < offset->size() ? ", ..." : "")};
}

/// Two ranks that handed in the same: said beside what is known, because it may be right.
std::string same_partial_sums(std::span<const TapPart> parts) {
  for (auto one = parts.begin(); one != parts.end(); ++one) {
    if (std::ranges::all_of(one->values, [](double value) { return value == 0; })) continue;
    const auto same = std::find_if(std::next(one), parts.end(), [&](const TapPart& other) {
      return other.rank != one->rank && other.placement.row_part == one->placement.row_part &&
             other.placement.col_part == one->placement.col_part && other.values == one->values;
    });
    if (same != parts.end()) {
      return fmt::format("; ranks {} and {} handed in the same partial sum", one->rank, same->rank);
    }
  }
  return {};
}

}  // namespace

Cause scheme_cause(const ExpectedTap& expected, const SchemeParts& parts, const Mesh& mesh, double tolerance) {
  const Rows rows = wrong_rows(expected, parts.whole, tolerance);
  if (rows.empty()) {
    return {"replicas_differ", "every value is close to what is expected, and replicas differ in their bits"};
  }
  const double relative = std::min(tolerance, kWidest);
  const double absolute = relative * *std::ranges::max_element(expected.scale);
  std::vector<int> ranks;
  for (const WrongRow& row : rows) ranks.push_back(row.rank);
  const Rows right = right_rows(expected, parts.whole, tolerance, ranks);
  const bool all = right.empty() || all_zero(right);

  const auto general = [&]() -> std::optional<Cause> {
    if (auto cause = value_cause(rows, absolute)) return cause;
    if (auto cause = partial_sums_cause(expected, parts, relative)) return cause;
    if (auto cause = ratio_cause(rows, all, mesh, absolute)) return cause;
    // What partial sums add up to was added.
    if (parts.partial_sums.empty()) {
      if (auto cause = unreduced_cause(rows, parts.whole, mesh, absolute)) return cause;
    }
    if (auto cause = order_cause(rows, expected, mesh, absolute)) return cause;
    if (auto cause = other_block_cause(expected, parts.whole, absolute)) return cause;
    return shared_term_cause(rows, absolute);
  };
  if (auto cause = general()) return *cause;
  return {"unknown", fmt::format("{} rows are wrong, on {}{}", rows.size(), diagnosis::ranks_of(rows),
                                 same_partial_sums(parts.partial_sums))};
}

}  // namespace shardproof
