// Signatures of an error: what turns the expected values into the values that a run got.
//
// Each function holds all wrong rows to one hypothesis and answers only when every element of every wrong row fits, to
// `tolerance` (0 in `exact`). Nothing here knows the model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "emu/diagnose/capture.h"
#include "emu/judge/expected.h"

namespace shardproof {

/// One rank's part of one row (a token) that is not what is expected.
struct WrongRow {
  int rank = 0;
  std::int64_t row = 0;
  std::int64_t col = 0;  ///< the first of its columns
  std::vector<double> got;
  std::vector<double> want;
};

/// Rows with an element further from the expected one than `tolerance` times the row's scale.
std::vector<WrongRow> wrong_rows(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance);

/// The others of those ranks, as wrong_rows() gives them.
std::vector<WrongRow> right_rows(const ExpectedTap& expected, std::span<const TapPart> parts, double tolerance,
                                 std::span<const int> ranks);

/// What the row would hold under a hypothesis; empty when the hypothesis says nothing of it.
using Prediction = std::function<std::vector<double>(const WrongRow&)>;

/// Whether the prediction is what was got, in every wrong row.
bool explains(std::span<const WrongRow> rows, const Prediction& prediction, double tolerance);
bool close(std::span<const double> a, std::span<const double> b, double tolerance);

bool all_zero(std::span<const WrongRow> rows);
/// The first of the candidates c with got = c * want. An element may be off by `step`, what a product rounds by.
std::optional<double> constant_ratio(std::span<const WrongRow> rows, std::span<const double> candidates, double step);
/// got - want, when it is the same for every element, of which there are several: replicas of one prove nothing.
std::optional<double> constant_offset(std::span<const WrongRow> rows, double tolerance);
/// got - want, when it is the same in every row, of two at least.
std::optional<std::vector<double>> constant_row(std::span<const WrongRow> rows, double tolerance);
/// For every wrong row the row of the expected tensor that it holds instead.
std::optional<std::vector<std::int64_t>> row_sources(std::span<const WrongRow> rows, const ExpectedTap& expected,
                                                     double tolerance);
/// For every block of `width` columns of the tensor the block that stands in its place (itself, where it is right or
/// unseen); the same in every wrong row.
std::optional<std::vector<std::int64_t>> block_sources(std::span<const WrongRow> rows, const ExpectedTap& expected,
                                                       std::int64_t width, double tolerance);

/// How the partial sums of a reduction were taken wrongly.
struct PartialSumFault {
  enum class Kind {
    own_only,  ///< each rank holds its own: nothing was reduced
    missing,   ///< one is not in the sum
    doubled,   ///< one is in it twice
    subgroup,  ///< each rank holds the sum over its part of the group, of `size` neighbours
    average,   ///< the sum over the number of members
    repeated,  ///< the sum times the number of members: reduced twice
    replaced,  ///< that of `member` is not in the sum, that of `other` is in it twice
    maximum,   ///< the greatest in place of the sum
  };
  Kind kind{};
  int member = -1;
  int other = -1;
  int size = 0;
};

struct PartialSums {
  int members = 0;
  /// A wrong row's partial sum of one member, without rounding.
  std::function<std::vector<double>(const WrongRow&, int member)> partial;
  /// The member that the row's rank is.
  std::function<int(const WrongRow&)> own;
  /// What is done with a sum: rounding.
  std::function<void(std::vector<double>&)> finish;
};

std::optional<PartialSumFault> partial_sum_fault(std::span<const WrongRow> rows, const PartialSums& sum,
                                                 double tolerance);

/// The combinations of a row's partial sums that PartialSumFault knows, in the order in which they are tried.
std::vector<PartialSumFault> partial_sum_faults(int members);
/// The sum of `partials` under the fault, for the member `own`.
std::vector<double> faulty_sum(const PartialSumFault& fault, std::span<const std::vector<double>> partials, int own);

}  // namespace shardproof
