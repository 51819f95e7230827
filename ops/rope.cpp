#include "ops/rope.h"

#include <cmath>
#include <vector>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

double to_exp_step(double value) {
  return simd::round_to_multiple<double>(simd::broadcast(value), kExpStep)[0];
}

}  // namespace

template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim, double theta, Format format) {
  require_equal("rope", "number of positions", x.rows, static_cast<Index>(positions.size()));
  if (head_dim < 2 || head_dim % 2 != 0) throw ShapeError("rope", "head_dim (even)", 2, head_dim);
  require_equal("rope", "columns beyond a whole number of heads", 0, x.cols % head_dim);
  if (x.size() == 0) return;

  const Index half = head_dim / 2;
  std::vector<double> frequency(static_cast<std::size_t>(half));
  for (Index i = 0; i < half; ++i) {
    frequency[static_cast<std::size_t>(i)] =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }
  std::vector<T> cosine(frequency.size()), sine(frequency.size());
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index row = 0; row < x.rows; ++row) {
      for (std::size_t i = 0; i < frequency.size(); ++i) {
        const double angle = static_cast<double>(positions[static_cast<std::size_t>(row)]) * frequency[i];
        const double c = std::cos(angle), s = std::sin(angle);
        cosine[i] = static_cast<T>(format == Format::exact ? to_exp_step(c) : c);
        sine[i] = static_cast<T>(format == Format::exact ? to_exp_step(s) : s);
      }
      for (T* head = x.row(row).data(); head != x.row(row).data() + x.cols; head += head_dim) {
        Index i = 0;
        const auto turn = [&](auto load, auto store) {
          const simd::Vec<T> a = load(head + i), b = load(head + half + i);
          const simd::Vec<T> c = load(cosine.data() + i), s = load(sine.data() + i);
          store(head + i, rounding(a * c - b * s));
          store(head + half + i, rounding(b * c + a * s));
        };
        for (; i + simd::kLanes<T> <= half; i += simd::kLanes<T>) {
          turn([](const T* from) { return simd::load<T>(from); },
               [](T* to, simd::Vec<T> value) { simd::store<T>(to, value); });
        }
        if (const Index rest = half - i; rest > 0) {
          turn([&](const T* from) { return simd::load_partial<T>(from, rest); },
               [&](T* to, simd::Vec<T> value) { simd::store_partial<T>(to, value, rest); });
        }
      }
    }
  });
}

template void rope(MatrixView<float>, std::span<const std::int64_t>, Index, double, Format);
template void rope(MatrixView<double>, std::span<const std::int64_t>, Index, double, Format);

}  // namespace shardproof::ops
