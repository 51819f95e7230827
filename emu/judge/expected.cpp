#include "emu/judge/expected.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace shardproof {
namespace {

constexpr double kScaleFloor = 0.25;

double root_mean_square(const double* values, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += values[i] * values[i];
  return count == 0 ? 0 : std::sqrt(sum / static_cast<double>(count));
}

std::string why_vacuous(const std::vector<double>& values, double scale) {
  if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
    return std::string(kNotFinite);
  }
  if (values.empty()) return "empty";
  if (scale == 0) return "zero";
  if (values.size() > 1 && std::all_of(values.begin(), values.end(), [&](double v) { return v == values.front(); })) {
    return std::string(kConstant);
  }
  return {};
}

}  // namespace

bool ExpectedTap::proves_nothing() const {
  return !vacuous.empty() && !(vacuous == kConstant && traits.constant_by_nature);
}

void ExpectedTaps::add(std::string name, std::int64_t rows, std::int64_t cols, std::vector<double> values,
                       const TapTraits& traits) {
  if (std::ssize(values) != rows * cols) {
    throw std::invalid_argument(
        fmt::format("tap '{}': {} values do not make a {} x {} tensor", name, values.size(), rows, cols));
  }
  if (!index_.emplace(name, static_cast<int>(taps_.size())).second) {
    throw std::invalid_argument(fmt::format("tap '{}' is expected twice", name));
  }
  ExpectedTap tap{.name = std::move(name),
                  .rows = rows,
                  .cols = cols,
                  .values = std::move(values),
                  .scale = std::vector<double>(static_cast<std::size_t>(rows)),
                  .vacuous = {},
                  .traits = traits};
  const double whole = root_mean_square(tap.values.data(), tap.values.size());
  for (std::size_t row = 0; row < tap.scale.size(); ++row) {
    const auto width = static_cast<std::size_t>(cols);
    tap.scale[row] = std::max(root_mean_square(tap.values.data() + row * width, width), kScaleFloor * whole);
  }
  if (!traits.ids) tap.vacuous = why_vacuous(tap.values, whole);
  taps_.push_back(std::move(tap));
}

int ExpectedTaps::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? -1 : found->second;
}

std::vector<ops::Matrix<std::int32_t>> expected_ids(const ExpectedTaps& expected) {
  std::vector<ops::Matrix<std::int32_t>> result;
  for (const ExpectedTap& tap : expected.all()) {
    if (!tap.traits.ids) continue;
    ops::Matrix<std::int32_t>& ids = result.emplace_back(tap.rows, tap.cols);
    std::ranges::transform(tap.values, ids.span().begin(), [](double id) { return static_cast<std::int32_t>(id); });
  }
  return result;
}

}  // namespace shardproof
