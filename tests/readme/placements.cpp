#include <algorithm>
#include <iostream>

#include "emu/judge/scheme.h"

using namespace shardproof;

constexpr int kRows = 14, kCols = 2;
double at(std::int64_t row, std::int64_t col) {
  return static_cast<double>((5 * row + 3 * col) % 11);
}
std::vector<double> rows_from(std::int64_t begin, std::int64_t count) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count * kCols; ++i) values.push_back(at(begin + i / kCols, i % kCols));
  return values;
}

// Zig-zag, of 16 rows of which the last two are padding: rank r of n holds chunks r and 2n - 1 - r of 2n.
Task<> zig_zag(Rank& rank) {
  const int n = rank.cp().size(), me = rank.at().cp, chunk_rows = 16 / (2 * n);
  for (const int chunk : {me, 2 * n - 1 - me}) {
    const std::int64_t begin = chunk * chunk_rows;
    std::vector<double> k = rows_from(begin, chunk_rows);
    if (me == 1 && chunk == 1) k[1] += 1;  // wrong in one place
    // The padding is no part of the tensor: what is tapped ends before it.
    const std::int64_t count = std::min<std::int64_t>(chunk_rows, kRows - begin);
    rank.tap<double>("k", {k.data(), count, kCols}, Placement::shard(0, kRows, kCols, {begin, count}));
  }
  // As [2, 7, 2], split over its middle dim: which rows of the folded tensor these are.
  const Range heads = partition(7, n, me);
  const std::vector<std::int64_t> rows = folded_rows({2, 7, kCols}, 1, heads);
  std::vector<double> v;
  for (const std::int64_t row : rows) v.insert(v.end(), {at(row, 0), at(row, 1)});
  rank.tap<double>("v", {v.data(), std::ssize(rows), kCols}, Placement::listed(kRows, kCols, rows, {0, kCols}));
  co_return;
}

int main() {
  ExpectedTaps expected;
  expected.add("k", kRows, kCols, rows_from(0, kRows));
  expected.add("v", {2, 7, kCols}, rows_from(0, kRows));
  const VerifyReport report = verify_scheme({.cp = 2}, zig_zag, expected, {.schedules = 20});
  for (const TapReport& tap : report.taps) std::cout << tap.name << ": " << to_string(tap.verdict) << "\n";
  std::cout << report.first_divergence->message << "\n";
}
