#include "ops/internal/exact_exp.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/format.h"
#include "ops/swiglu.h"

namespace shardproof::ops {

namespace {

// Below -15 exp is under half of kExpStep: the value is zero.
constexpr double kLowest = -15;
constexpr double kPerUnit = 1 / kActivationStep;

double rounded_exp(double x) {
  return std::nearbyint(std::exp(x) / kExpStep) * kExpStep;
}

const double* table() {
  static const std::vector<double> values = [] {
    const int size = static_cast<int>((kSiluExponentMax - kLowest) * kPerUnit) + 1;
    std::vector<double> result(static_cast<std::size_t>(size));
    for (int i = 0; i < size; ++i) result[static_cast<std::size_t>(i)] = rounded_exp(kLowest + i * kActivationStep);
    return result;
  }();
  return values.data();
}

}  // namespace

ExactExponential::ExactExponential() : table_(table()) {}

double ExactExponential::operator()(double x) const {
  if (std::isnan(x)) return x;
  const double place = (std::clamp(x, kLowest, kSiluExponentMax) - kLowest) * kPerUnit;
  const auto index = static_cast<int>(place);
  if (static_cast<double>(index) == place) return table_[index];
  return rounded_exp(std::min(x, kSiluExponentMax));
}

}  // namespace shardproof::ops
