// What the taps of a run should be: whole tensors in float64, in program order.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "emu/run/routing.h"
#include "emu/run/tap.h"

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
  /// weights where one expert is chosen and its weight renormalised; a single column where all tokens are the same one.
  bool constant_by_nature = false;
  /// Rows that a run has of it; empty: all.
  std::vector<bool> due = {};
  int step = -1;  ///< of a scheme that goes in steps: in which it is tapped; -1 in none
};

/// One expected tensor, [rows, cols] row-major. A row is a token.
struct ExpectedTap {
  std::string name;
  std::string kind;         ///< the name without its layer: what the taps of all layers share
  std::optional<TapId> id;  ///< of a tensor of the model; a scheme's own has a name only
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<std::int64_t> dims = {};  ///< where it has other than two: rows are all but the last
  std::vector<double> values;           ///< none where only the shape is known
  /// Per row, what an error of that row is measured by: the root mean square of its values, but at least a quarter of
  /// the whole tensor's, so that a row whose sums cancel does not turn rounding into an error.
  std::vector<double> scale;
  /// Why a comparison with this tensor would prove nothing: "not finite", "zero", "constant"; empty when it would.
  std::string vacuous;
  TapTraits traits;

  /// Agreement with this tensor would prove nothing.
  bool proves_nothing() const;
  std::int64_t size() const { return rows * cols; }
  bool is_due(std::int64_t row) const { return traits.due.empty() || traits.due[static_cast<std::size_t>(row)]; }
  double at(std::int64_t row, std::int64_t col) const { return values[static_cast<std::size_t>(row * cols + col)]; }
};

/// The expected tensors of a run, by name and in program order.
class ExpectedTaps {
 public:
  /// Both throw std::invalid_argument when a tensor of that name and step was added before, there is no name, or the
  /// values are not rows * cols.
  void add(const TapId& id, std::int64_t rows, std::int64_t cols, std::vector<double> values,
           const TapTraits& traits = {});
  void add(std::string name, std::int64_t rows, std::int64_t cols, std::vector<double> values,
           const TapTraits& traits = {});

  /// A tensor of any number of dims, row-major: all but the last are folded into rows, as parts of it are placed.
  /// Throws std::invalid_argument too for a dim below 0.
  void add(std::string name, const std::vector<std::int64_t>& dims, std::vector<double> values,
           const TapTraits& traits = {});

  /// A tensor of which the shape is known, and the values are computed from what the run itself had.
  void add_shape(const TapId& id, std::int64_t rows, std::int64_t cols, const TapTraits& traits = {});

  const std::vector<ExpectedTap>& all() const { return taps_; }
  /// Index in `all()`, or -1.
  int find(std::string_view name) const;
  int find(const TapId& id) const;
  int find(const TapKey& key) const;

 private:
  using IdKey = std::tuple<int, int, TapKind, int, int, int>;
  static IdKey key_of(const TapId& id) { return {id.step, id.layer, id.kind, id.expert, id.slot, id.part}; }
  void add(ExpectedTap tap);
  void name_last(const TapId& id);

  std::vector<ExpectedTap> taps_;
  std::map<std::string, int, std::less<>> index_;
  std::map<IdKey, int> index_of_id_;
};

/// "layer.3.attention.q", "y"; of a step, "step.2.y".
std::string name_of(const TapKey& key);

/// The experts that each layer's tokens should choose.
RoutingReplay choices_of(const ExpectedTaps& expected);

}  // namespace shardproof
