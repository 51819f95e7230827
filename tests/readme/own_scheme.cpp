#include <iostream>

#include "emu/judge/scheme.h"
#include "ops/linear.h"

using namespace shardproof;

constexpr int kTokens = 4, kIn = 8, kOut = 6;
double x_at(std::int64_t i, std::int64_t j) {
  return static_cast<double>((3 * i + j) % 5) - 2;
}
double w_at(std::int64_t i, std::int64_t j) {
  return static_cast<double>((i + 2 * j) % 7) - 3;
}

// y = x w^T, the columns of x and w split over tp: every rank computes a partial sum of y.
Task<> row_parallel_linear(Rank& rank) {
  const Range part = partition(kIn, rank.tp().size(), rank.at().tp);
  ops::Matrix<double> x(kTokens, part.count), w(kOut, part.count), y(kTokens, kOut);
  for (std::int64_t j = 0; j < part.count; ++j) {
    for (int i = 0; i < kTokens; ++i) x(i, j) = x_at(i, part.begin + j);
    for (int i = 0; i < kOut; ++i) w(i, j) = w_at(i, part.begin + j);
  }
  ops::linear<double>(x, w, y);
  if (rank.at().dp == 0) co_await rank.tp().all_reduce(y.span());  // replica 1 forgets it
  rank.tap<double>("linear.output", y, Placement::replicate(kTokens, kOut));
}

int main() {
  std::vector<double> y;
  for (int i = 0; i < kTokens * kOut; ++i) {
    y.push_back(0);
    for (int k = 0; k < kIn; ++k) y.back() += x_at(i / kOut, k) * w_at(i % kOut, k);
  }
  ExpectedTaps expected;
  expected.add("linear.output", kTokens, kOut, y);

  const VerifyReport report = verify_scheme({.tp = 2, .dp = 2}, row_parallel_linear, expected);

  std::cout << to_string(report.verdict) << ": " << report.first_divergence->tap << " on ranks";
  for (const int rank : report.first_divergence->ranks) std::cout << " " << rank;
  std::cout << "\n" << report.first_divergence->message << "\n";
  std::cout << report.first_divergence->cause->name << ": " << report.first_divergence->cause->evidence << "\n";
}
