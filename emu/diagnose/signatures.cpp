#include "emu/diagnose/signatures.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace shardproof {
namespace {

std::span<const double> row_part(const ExpectedTap& tap, std::int64_t row, std::int64_t col, std::size_t count) {
  return std::span(tap.values).subspan(static_cast<std::size_t>(row * tap.cols + col), count);
}

/// The block of width columns that the values are, or -1.
std::int64_t find_block(const ExpectedTap& expected, std::int64_t row, std::span<const double> values,
                        double tolerance) {
  const auto width = std::ssize(values);
  for (std::int64_t block = 0; block < expected.cols / width; ++block) {
    if (close(values, row_part(expected, row, block * width, values.size()), tolerance)) return block;
  }
  return -1;
}

}  // namespace

bool close(std::span<const double> a, std::span<const double> b, double tolerance) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i] || std::abs(a[i] - b[i]) <= tolerance)) return false;
  }
  return true;
}

namespace {

/// Every row of the parts that fit the tensor, with whether it is wrong.
template <class Visit>
void for_each_row(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance, const Visit& visit) {
  for (const TapPart& part : parts) {
    const Range& rows = part.placement.row_part;
    const Range& cols = part.placement.col_part;
    const auto width = static_cast<std::size_t>(cols.count);
    if (part.placement.rows != expected.rows || part.placement.cols != expected.cols) continue;
    if (part.placement.row_list.empty() && (rows.begin < 0 || rows.end() > expected.rows)) continue;
    if (cols.begin < 0 || cols.end() > expected.cols) continue;
    if (part.values.size() != static_cast<std::size_t>(rows.count) * width) continue;
    for (std::int64_t i = 0; i < rows.count; ++i) {
      const std::span<const double> got = std::span(part.values).subspan(static_cast<std::size_t>(i) * width, width);
      const std::int64_t row = part.placement.row(i);
      const std::span<const double> want = row_part(expected, row, cols.begin, width);
      const bool wrong = !close(got, want, tolerance * expected.scale[static_cast<std::size_t>(row)]);
      visit(wrong, WrongRow{part.rank, row, cols.begin, {got.begin(), got.end()}, {want.begin(), want.end()}});
    }
  }
}

}  // namespace

std::vector<WrongRow> wrong_rows(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance) {
  std::vector<WrongRow> rows;
  for_each_row(expected, parts, tolerance, [&](bool wrong, WrongRow row) {
    if (wrong) rows.push_back(std::move(row));
  });
  return rows;
}

std::vector<WrongRow> right_rows(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance,
                                 std::span<const int> ranks) {
  std::vector<WrongRow> rows;
  for_each_row(expected, parts, tolerance, [&](bool wrong, WrongRow row) {
    if (!wrong && std::ranges::find(ranks, row.rank) != ranks.end()) rows.push_back(std::move(row));
  });
  return rows;
}

bool explains(std::span<const WrongRow> rows, const Prediction& prediction, double tolerance) {
  return !rows.empty() &&
         std::ranges::all_of(rows, [&](const WrongRow& row) { return close(prediction(row), row.got, tolerance); });
}

bool all_zero(std::span<const WrongRow> rows) {
  return !rows.empty() && std::ranges::all_of(rows, [](const WrongRow& row) {
    return std::ranges::all_of(row.got, [](double value) { return value == 0; });
  });
}

std::optional<double> constant_ratio(std::span<const WrongRow> rows, std::span<const double> candidates, double step) {
  for (const double ratio : candidates) {
    const auto scaled = [&](const WrongRow& row) {
      std::vector<double> values = row.want;
      for (double& value : values) value *= ratio;
      return values;
    };
    if (explains(rows, scaled, step)) return ratio;
  }
  return std::nullopt;
}

std::optional<double> constant_offset(std::span<const WrongRow> rows, double tolerance) {
  const auto is_one_element = [&](const WrongRow& row) {
    return row.got.size() < 2 && row.row == rows.front().row && row.col == rows.front().col;
  };
  if (std::ranges::all_of(rows, is_one_element)) return std::nullopt;
  const double offset = rows.front().got.front() - rows.front().want.front();
  const auto shifted = [&](const WrongRow& row) {
    std::vector<double> values = row.want;
    for (double& value : values) value += offset;
    return values;
  };
  if (offset == 0 || !explains(rows, shifted, tolerance)) return std::nullopt;
  return offset;
}

std::optional<std::vector<double>> constant_row(std::span<const WrongRow> rows, double tolerance) {
  const auto same_columns = [&](const WrongRow& row) {
    return row.col == rows.front().col && row.got.size() == rows.front().got.size();
  };
  const auto another_row = [&](const WrongRow& row) { return row.row != rows.front().row; };
  if (!std::ranges::all_of(rows, same_columns) || std::ranges::none_of(rows, another_row)) return std::nullopt;
  std::vector<double> offset = rows.front().got;
  for (std::size_t i = 0; i < offset.size(); ++i) offset[i] -= rows.front().want[i];
  const auto shifted = [&](const WrongRow& row) {
    std::vector<double> values = row.want;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += offset[i];
    return values;
  };
  if (!explains(rows, shifted, tolerance)) return std::nullopt;
  return offset;
}

std::optional<std::vector<std::int64_t>> row_sources(std::span<const WrongRow> rows, const ExpectedTap& expected,
                                                     double tolerance) {
  std::vector<std::int64_t> sources;
  for (const WrongRow& row : rows) {
    std::int64_t source = 0;
    while (source < expected.rows && !close(row.got, row_part(expected, source, row.col, row.got.size()), tolerance)) {
      ++source;
    }
    if (source == expected.rows) return std::nullopt;
    sources.push_back(source);
  }
  if (sources.empty()) return std::nullopt;
  return sources;
}

std::optional<std::vector<std::int64_t>> block_sources(std::span<const WrongRow> rows, const ExpectedTap& expected,
                                                       std::int64_t width, double tolerance) {
  if (rows.empty() || width <= 0 || expected.cols % width != 0) return std::nullopt;
  std::map<std::int64_t, std::int64_t> sources;
  for (const WrongRow& row : rows) {
    if (row.col % width != 0 || std::ssize(row.got) % width != 0) return std::nullopt;
    for (std::int64_t begin = 0; begin < std::ssize(row.got); begin += width) {
      const auto first = static_cast<std::size_t>(begin);
      const auto count = static_cast<std::size_t>(width);
      const std::span<const double> got = std::span(row.got).subspan(first, count);
      if (close(got, std::span(row.want).subspan(first, count), tolerance)) continue;
      const std::int64_t block = (row.col + begin) / width;
      const auto known = sources.find(block);
      if (known != sources.end()) {
        if (!close(got, row_part(expected, row.row, known->second * width, count), tolerance)) return std::nullopt;
        continue;
      }
      const std::int64_t source = find_block(expected, row.row, got, tolerance);
      if (source < 0) return std::nullopt;
      sources.emplace(block, source);
    }
  }
  std::vector<std::int64_t> map(static_cast<std::size_t>(expected.cols / width));
  for (std::size_t block = 0; block < map.size(); ++block) map[block] = static_cast<std::int64_t>(block);
  for (const auto& [block, source] : sources) map[static_cast<std::size_t>(block)] = source;
  return map;
}

std::vector<PartialSumFault> partial_sum_faults(int members) {
  using Kind = PartialSumFault::Kind;
  std::vector<PartialSumFault> faults{{.kind = Kind::own_only}};
  if (members < 2) return {};
  for (int m = 0; m < members; ++m) faults.push_back({.kind = Kind::missing, .member = m});
  for (int m = 0; m < members; ++m) faults.push_back({.kind = Kind::doubled, .member = m});
  for (int size = 2; size < members; ++size) {
    if (members % size == 0) faults.push_back({.kind = Kind::subgroup, .size = size});
  }
  faults.push_back({.kind = Kind::average});
  faults.push_back({.kind = Kind::repeated});
  faults.push_back({.kind = Kind::maximum});
  for (int m = 0; m < members; ++m) {
    for (int other = 0; other < members; ++other) {
      if (other != m) faults.push_back({.kind = Kind::replaced, .member = m, .other = other});
    }
  }
  return faults;
}

std::vector<double> faulty_sum(const PartialSumFault& fault, std::span<const std::vector<double>> partials, int own) {
  using Kind = PartialSumFault::Kind;
  const int members = static_cast<int>(partials.size());
  const auto factor = [&](int m) -> double {
    switch (fault.kind) {
      case Kind::own_only:
        return m == own ? 1 : 0;
      case Kind::missing:
        return m == fault.member ? 0 : 1;
      case Kind::doubled:
        return m == fault.member ? 2 : 1;
      case Kind::subgroup:
        return m / fault.size == own / fault.size ? 1 : 0;
      case Kind::replaced:
        return m == fault.member ? 0 : m == fault.other ? 2 : 1;
      default:
        return 1;
    }
  };
  std::vector<double> sum(partials.front().size(), fault.kind == Kind::maximum ? -INFINITY : 0.0);
  for (int m = 0; m < members; ++m) {
    const std::vector<double>& partial = partials[static_cast<std::size_t>(m)];
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] = fault.kind == Kind::maximum ? std::max(sum[i], partial[i]) : sum[i] + factor(m) * partial[i];
    }
  }
  for (double& value : sum) {
    if (fault.kind == Kind::average) value /= members;
    if (fault.kind == Kind::repeated) value *= members;
  }
  return sum;
}

std::optional<PartialSumFault> partial_sum_fault(std::span<const WrongRow> rows, const PartialSums& sum,
                                                 double tolerance) {
  if (rows.empty()) return std::nullopt;
  std::vector<std::vector<std::vector<double>>> partials(rows.size());
  for (const PartialSumFault& fault : partial_sum_faults(sum.members)) {
    bool fits = true;
    for (std::size_t i = 0; fits && i < rows.size(); ++i) {
      if (partials[i].empty()) {
        for (int m = 0; m < sum.members; ++m) partials[i].push_back(sum.partial(rows[i], m));
      }
      std::vector<double> predicted = faulty_sum(fault, partials[i], sum.own(rows[i]));
      sum.finish(predicted);
      fits = close(predicted, rows[i].got, tolerance);
    }
    if (fits) return fault;
  }
  return std::nullopt;
}

}  // namespace shardproof
