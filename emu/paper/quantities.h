// Quantities: named functions of plan, model, hardware and workload, each with unit, formula and arithmetic.
//
// A quantity is one number, or one number for each rank (then: max, min, mean), or not to be known here: it needs
// timing, or a run. Bytes are bytes, shares 0..1, times seconds; a claim's unit ("GB", "%", "ms") is converted
// (claims.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/paper/timed_plan.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// What a number measures, so that units can be converted and sums of unlike things refused. A count is a plain number.
enum class Dimension { count, bytes, parameters, flops, share, seconds, rate };

struct QuantityValue {
  /// Set when the value cannot be told here: why, and what would tell.
  std::string unknown;
  bool per_rank = false;
  double value = 0;  ///< when not per_rank
  double max = 0, min = 0, mean = 0;
  int max_rank = 0;
  /// The value is a projection: it lies in low..high, on whatever hardware the plan may mean.
  bool interval = false;
  double low = 0, high = 0;
  /// The value with each preset that may fill what the plan leaves open of its hardware.
  std::vector<std::pair<std::string, double>> by_hardware;
  Dimension dimension = Dimension::count;
  std::string arithmetic;  ///< one line, with the plan's numbers
  /// Set when the value holds under a reading of the plan that its authors need not have meant.
  std::string condition;
  /// The value under the other reading, where that is one number: what holds for both holds.
  std::optional<double> condition_value = {};
  /// What it would take to reach a stated value; may be null.
  std::function<std::string(double stated)> remedy;
};

/// Everything that quantities are computed from.
struct QuantityContext {
  const Plan& plan;
  const std::vector<RankFigures>& ranks;
  const LazyTimedPlan& time;
};

struct QuantityDefinition {
  std::string name;
  std::string unit;
  std::string formula;
  std::function<QuantityValue(const QuantityContext&, std::span<const double>)> compute;
  int arguments = 0;
  Dimension dimension = Dimension::count;
};

/// Every quantity, in the order of reports.
const std::vector<QuantityDefinition>& quantity_definitions();

/// The quantities of one plan. The plan must be valid, and outlive this.
class Quantities {
 public:
  explicit Quantities(const Plan& plan);

  const Plan& plan() const { return plan_; }
  const std::vector<RankFigures>& ranks() const { return ranks_; }

  /// Empty when no quantity has that name, or it takes another number of arguments.
  std::optional<QuantityValue> evaluate(std::string_view name, std::span<const double> arguments = {}) const;
  static const QuantityDefinition* find(std::string_view name);

 private:
  const Plan& plan_;
  std::vector<RankFigures> ranks_;
  LazyTimedPlan time_;
};

/// "2.08 GB", "87.5 %", "1,024": a value as people read it.
std::string readable(double value, Dimension dimension);
/// Of seconds.
std::string duration(double seconds);

/// What a rank holds to serve: inference_bytes_per_gpu, and its arithmetic.
double inference_bytes(const Plan& plan, const RankFigures& r);
std::string inference_text(const Plan& plan, const RankFigures& r);

}  // namespace shardproof
