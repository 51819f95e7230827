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

std::vector<double> frequencies(Index head_dim, double theta) {
  if (head_dim < 2 || head_dim % 2 != 0) throw ShapeError("rope", "head_dim (even)", 2, head_dim);
  std::vector<double> result(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }
  return result;
}

template <class T>
void turns_of(Index position, const std::vector<double>& frequency, Format format, T* cosine, T* sine) {
  for (std::size_t i = 0; i < frequency.size(); ++i) {
    const double angle = static_cast<double>(position) * frequency[i];
    const double c = std::cos(angle), s = std::sin(angle);
    cosine[i] = static_cast<T>(format == Format::exact ? to_exp_step(c) : c);
    sine[i] = static_cast<T>(format == Format::exact ? to_exp_step(s) : s);
  }
}

template <class T, class Rounding>
void turn_row(std::span<T> row, Index half, const T* cosine, const T* sine, Rounding rounding) {
  for (T* head = row.data(); head != row.data() + row.size(); head += 2 * half) {
    Index i = 0;
    const auto turn = [&](auto load, auto store) {
      const simd::Vec<T> a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
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

template <class T>
void require_shapes(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim) {
  require_equal("rope", "number of positions", x.rows, static_cast<Index>(positions.size()));
  require_equal("rope", "columns beyond a whole number of heads", 0, x.cols % head_dim);
}

}  // namespace

template <class T>
RopeTable<T>::RopeTable(Index positions, Index head_dim, double theta, Format format)
    : values_(positions, head_dim), format_(format) {
  const std::vector<double> frequency = frequencies(head_dim, theta);
  for (Index position = 0; position < positions; ++position) {
    T* const row = values_.row(position).data();
    turns_of<T>(position, frequency, format, row, row + half());
  }
}

template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, const RopeTable<T>& table) {
  require_shapes(x, positions, table.head_dim());
  for (const Index position : positions) {
    if (position < 0 || position >= table.positions()) {
      throw ShapeError("rope", "position (below the table's positions)", table.positions(), position);
    }
  }
  simd::with_rounding<T>(table.format(), [&](auto rounding) {
    for (Index t = 0; t < x.rows; ++t) {
      const Index position = positions[static_cast<std::size_t>(t)];
      turn_row<T>(x.row(t), table.head_dim() / 2, table.cosine(position).data(), table.sine(position).data(), rounding);
    }
  });
}

template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim, double theta, Format format) {
  const std::vector<double> frequency = frequencies(head_dim, theta);
  require_shapes(x, positions, head_dim);
  std::vector<T> cosine(frequency.size()), sine(frequency.size());
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index t = 0; t < x.rows; ++t) {
      turns_of<T>(positions[static_cast<std::size_t>(t)], frequency, format, cosine.data(), sine.data());
      turn_row<T>(x.row(t), head_dim / 2, cosine.data(), sine.data(), rounding);
    }
  });
}

template class RopeTable<float>;
template class RopeTable<double>;
template void rope(MatrixView<float>, std::span<const std::int64_t>, const RopeTable<float>&);
template void rope(MatrixView<double>, std::span<const std::int64_t>, const RopeTable<double>&);
template void rope(MatrixView<float>, std::span<const std::int64_t>, Index, double, Format);
template void rope(MatrixView<double>, std::span<const std::int64_t>, Index, double, Format);

}  // namespace shardproof::ops
