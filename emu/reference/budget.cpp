#include "emu/reference/budget.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

namespace shardproof::reference {
namespace {

void require_on_grid(const TapName& tap, std::span<const double> w) {
  std::int64_t off = 0;
  for (const double value : w) {
    const double steps = value / kWeightStep;
    // What is not finite has no bound, and is found there.
    off += steps != std::nearbyint(steps) && steps == steps ? 1 : 0;
  }
  if (off == 0) return;
  throw std::invalid_argument("reference: " + std::to_string(off) + " weights that go into " + to_string(tap) +
                              " are no multiples of 2^-16");
}

}  // namespace

std::string to_string(const TapName& tap) {
  std::string text;
  if (tap.layer >= 0) text = "layer." + std::to_string(tap.layer) + ".";
  return text.append(tap.name);
}

int bits_needed(double bound, double step) {
  const double steps = bound / step;
  if (!(steps < std::numeric_limits<double>::infinity())) return kUnboundedBits;
  return steps < 1 ? 0 : std::ilogb(steps) + 1;
}

double largest_magnitude(std::span<const double> values) {
  // Magnitudes are ordered as their bits are, NaN after infinity.
  std::int64_t largest = 0;
  for (const double value : values) largest = std::max(largest, std::bit_cast<std::int64_t>(std::abs(value)));
  return std::bit_cast<double>(largest);
}

double largest_row_sum(std::span<const double> values, std::int64_t cols) {
  const auto width = static_cast<std::size_t>(cols);
  std::vector<double> sums_of_rows;
  for (std::size_t row = 0; row + width <= values.size() && width > 0; row += width) {
    // Four sums advance together; in which order magnitudes are added does not matter while they are exact.
    double sums[4] = {};
    std::size_t i = 0;
    for (; i + 4 <= width; i += 4) {
      for (std::size_t lane = 0; lane < 4; ++lane) sums[lane] += std::abs(values[row + i + lane]);
    }
    for (; i < width; ++i) sums[0] += std::abs(values[row + i]);
    sums_of_rows.push_back((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return largest_magnitude(sums_of_rows);
}

void SumRecorder::bias(const TapName& tap, std::span<const double> bias) const {
  if (!sink_) return;
  require_on_grid(tap, bias);
  if (largest_magnitude(bias) <= kLargestBias) return;
  throw std::invalid_argument("reference: a bias that goes into " + to_string(tap) + " is larger than 2^10");
}

void SumRecorder::linear(const TapName& tap, std::string_view sum, const Tensor& x, std::span<const double> w,
                         double more) const {
  if (!sink_) return;
  require_on_grid(tap, w);
  tell(tap, sum, largest_magnitude(x.values) * largest_row_sum(w, x.cols) + more, kActivationStep * kWeightStep);
}

void SumRecorder::squares(const TapName& tap, const Tensor& x) const {
  if (!sink_) return;
  const double largest = largest_magnitude(x.values);
  tell(tap, "x^2 over the width", static_cast<double>(x.cols) * largest * largest, kActivationStep * kActivationStep);
}

void SumRecorder::mean(const TapName& tap, const Tensor& x) const {
  if (!sink_) return;
  tell(tap, "x over the width", static_cast<double>(x.cols) * largest_magnitude(x.values), kActivationStep);
}

void SumRecorder::rotation(const TapName& tap, const Tensor& x, double amplitude) const {
  if (!sink_) return;
  tell(tap, "x cos - y sin of RoPE", 2 * amplitude * largest_magnitude(x.values), kActivationStep * kExpStep);
}

void SumRecorder::attention(const TapName& tap, const Tensor& q, const Tensor& k, const Tensor& v,
                            std::int64_t head_dim, std::span<const std::int64_t> lengths, bool sinks) const {
  if (!sink_) return;
  const auto keys = static_cast<double>(lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end()));
  tell(tap, "q . k", static_cast<double>(head_dim) * largest_magnitude(q.values) * largest_magnitude(k.values),
       kActivationStep * kActivationStep);
  tell(tap, "p over the keys", keys + (sinks ? 1 : 0), kExpStep);
  tell(tap, "p v over the keys", keys * largest_magnitude(v.values), kExpStep * kActivationStep);
}

void SumRecorder::silu(const TapName& tap, const Tensor& gate, double slope) const {
  if (!sink_) return;
  double largest = -std::numeric_limits<double>::infinity();
  for (const double g : gate.values) largest = std::max(largest, -slope * g);
  tell(tap, "1 + exp(-gate)", 1 + exponential(std::clamp(largest, -40.0, 20.0), Arithmetic::exact), kExpStep);
}

void SumRecorder::routing(const TapName& tap, std::int64_t experts) const {
  if (!sink_) return;
  tell(tap, "exp over the experts", static_cast<double>(experts), kExpStep);
}

void SumRecorder::combination(const TapName& tap, const Tensor& weights, const Tensor& outputs) const {
  if (!sink_) return;
  tell(tap, "weight * output over the experts of a token",
       largest_row_sum(weights.values, weights.cols) * largest_magnitude(outputs.values),
       kActivationStep * kActivationStep);
}

void SumRecorder::addition(const TapName& tap, const Tensor& x, const Tensor& y) const {
  if (!sink_) return;
  tell(tap, "x + y", largest_magnitude(x.values) + largest_magnitude(y.values), kActivationStep);
}

}  // namespace shardproof::reference
