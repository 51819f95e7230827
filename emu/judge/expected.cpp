#include "emu/judge/expected.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
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
  if (name.empty() || traits.step < -1) {
    throw std::invalid_argument(
        fmt::format("tap '{}' of step {}: a tap needs a name, and a step of at least 0 or none", name, traits.step));
  }
  if (rows < 0 || cols < 0 || (cols > 0 && rows > std::numeric_limits<std::int64_t>::max() / cols)) {
    throw std::invalid_argument(fmt::format("tap '{}': a tensor cannot be {} x {}", name, rows, cols));
  }
  if (std::ssize(values) != rows * cols) {
    throw std::invalid_argument(
        fmt::format("tap '{}': {} values do not make a {} x {} tensor", name, values.size(), rows, cols));
  }
  ExpectedTap tap{.name = name_of({.id = {.step = traits.step}, .name = name}),
                  .kind = name,
                  .id = {},
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
  add(std::move(tap));
}

void ExpectedTaps::add(std::string name, const std::vector<std::int64_t>& dims, std::vector<double> values,
                       const TapTraits& traits) {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] < 0) throw std::invalid_argument(fmt::format("tap '{}': dim {} is {}", name, i, dims[i]));
    if (i + 1 == dims.size()) break;
    if (dims[i] > 0 && rows > std::numeric_limits<std::int64_t>::max() / dims[i]) {
      throw std::invalid_argument(fmt::format("tap '{}': more elements than can be counted", name));
    }
    rows *= dims[i];
  }
  add(std::move(name), rows, dims.empty() ? 1 : dims.back(), std::move(values), traits);
  taps_.back().dims = dims;
}

void ExpectedTaps::add(ExpectedTap tap) {
  if (!index_.emplace(tap.name, static_cast<int>(taps_.size())).second) {
    throw std::invalid_argument(fmt::format("tap '{}' is expected twice", tap.name));
  }
  taps_.push_back(std::move(tap));
}

void ExpectedTaps::name_last(const TapId& id) {
  taps_.back().id = id;
  taps_.back().kind = tap_row(id.kind).name;
  index_of_id_.emplace(key_of(id), static_cast<int>(taps_.size()) - 1);
}

void ExpectedTaps::add_shape(const TapId& id, std::int64_t rows, std::int64_t cols, const TapTraits& traits) {
  add({.name = to_string(id), .kind = {}, .id = {}, .rows = rows, .cols = cols, .traits = traits});
  name_last(id);
}

void ExpectedTaps::add(const TapId& id, std::int64_t rows, std::int64_t cols, std::vector<double> values,
                       const TapTraits& traits) {
  add(to_string(id), rows, cols, std::move(values), traits);
  name_last(id);
}

int ExpectedTaps::find(const TapId& id) const {
  const auto found = index_of_id_.find(key_of(id));
  return found == index_of_id_.end() ? -1 : found->second;
}

RoutingReplay choices_of(const ExpectedTaps& expected) {
  RoutingReplay choices;
  for (const ExpectedTap& tap : expected.all()) {
    if (!tap.id || tap.id->kind != TapKind::router_choice) continue;
    const auto layer = static_cast<std::size_t>(tap.id->layer);
    if (choices.size() <= layer) choices.resize(layer + 1);
    choices[layer] = ops::Matrix<std::int32_t>(tap.rows, tap.cols);
    std::ranges::transform(tap.values, choices[layer].span().begin(),
                           [](double id) { return static_cast<std::int32_t>(id); });
  }
  return choices;
}

int ExpectedTaps::find(const TapKey& key) const {
  if (key.name.empty()) return find(key.id);
  return key.id.step < 0 ? find(key.name) : find(name_of(key));
}

std::string name_of(const TapKey& key) {
  if (key.name.empty()) return to_string(key.id);
  return key.id.step < 0 ? std::string(key.name) : fmt::format("step.{}.{}", key.id.step, key.name);
}

int ExpectedTaps::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? -1 : found->second;
}

}  // namespace shardproof
