// What the taps of a run should be: whole tensors in float64, in program order.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ops/matrix.h"

namespace shardproof {

/// ExpectedTap::vacuous of a tensor that holds an infinity or no number.
inline constexpr std::string_view kNotFinite = "not finite";
/// Of a tensor of one value throughout.
inline constexpr std::string_view kConstant = "constant";

/// What is known of a tensor beside its values.
struct TapTraits {
  /// Holds ids (the router's choice): compared as the set of its row, not by value.
  bool ids = false;
  /// Every right run gives one value throughout, so that a constant proves as much as there is to prove: the router's
  /// weights where one expert is chosen and its weight renormalised.
  bool constant_by_nature = false;
};

/// One expected tensor, [rows, cols] row-major. A row is a token.
struct ExpectedTap {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;
  /// Per row, what an error of that row is measured by: the root mean square of its values, but at least a quarter of
  /// the whole tensor's, so that a row whose sums cancel does not turn rounding into an error.
  std::vector<double> scale;
  /// Why a comparison with this tensor would prove nothing: "not finite", "zero", "constant"; empty when it would.
  std::string vacuous;
  TapTraits traits;

  /// Agreement with this tensor would prove nothing.
  bool proves_nothing() const;
  double at(std::int64_t row, std::int64_t col) const { return values[static_cast<std::size_t>(row * cols + col)]; }
};

/// The expected tensors of a run, by name and in program order.
class ExpectedTaps {
 public:
  /// Throws std::invalid_argument when a tensor of that name was added before, or the values are not rows * cols.
  void add(std::string name, std::int64_t rows, std::int64_t cols, std::vector<double> values,
           const TapTraits& traits = {});

  const std::vector<ExpectedTap>& all() const { return taps_; }
  /// Index in `all()`, or -1.
  int find(std::string_view name) const;

 private:
  std::vector<ExpectedTap> taps_;
  std::map<std::string, int, std::less<>> index_;
};

/// The tensors of ids, in program order.
std::vector<ops::Matrix<std::int32_t>> expected_ids(const ExpectedTaps& expected);

}  // namespace shardproof
