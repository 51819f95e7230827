#include "ops/norm.h"

#include <algorithm>
#include <cmath>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

template <class T>
T row_squares(std::span<const T> row) {
  return simd::sum_of<T>(
      static_cast<Index>(row.size()), [](auto value) { return value * value; }, row.data());
}

/// Of rows of n elements whose squares add up to squares_of(row).
template <class T, class Squares>
void norm_rows(MatrixView<const T> x, const Squares& squares_of, Index n, std::span<const T> weight, double eps,
               Format format, MatrixView<T> y) {
  require_equal("rms_norm", "size of the weight", x.cols, static_cast<Index>(weight.size()));
  require_equal("rms_norm", "rows of the output", x.rows, y.rows);
  require_equal("rms_norm", "columns of the output", x.cols, y.cols);
  if (y.size() == 0) return;
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index row = 0; row < x.rows; ++row) {
      const T inverse = T{1} / std::sqrt(squares_of(row) / static_cast<T>(n) + static_cast<T>(eps));
      const auto scale = [&](auto value, auto factor) { return rounding((value * inverse) * factor); };
      // The next row is on its way while this one, now in the cache, is written.
      const T* next = x.row(std::min(row + 1, x.rows - 1)).data();
      const auto ask = [next](Index i) { __builtin_prefetch(next + i); };
      simd::transform_asking<T>(x.cols, y.row(row).data(), ask, scale, x.row(row).data(), weight.data());
    }
  });
}

}  // namespace

template <class T>
void rms_norm(MatrixView<const T> x, std::span<const T> weight, double eps, Format format, MatrixView<T> y) {
  norm_rows(
      x, [&](Index row) { return row_squares(x.row(row)); }, x.cols, weight, eps, format, y);
}

template <class T>
void layer_norm(MatrixView<const T> x, std::span<const T> weight, std::span<const T> bias, double eps, Format format,
                MatrixView<T> y) {
  require_equal("layer_norm", "size of the weight", x.cols, static_cast<Index>(weight.size()));
  require_equal("layer_norm", "size of the bias", x.cols, static_cast<Index>(bias.size()));
  require_equal("layer_norm", "rows of the output", x.rows, y.rows);
  require_equal("layer_norm", "columns of the output", x.cols, y.cols);
  if (y.size() == 0) return;
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index row = 0; row < x.rows; ++row) {
      const T* in = x.row(row).data();
      T mean = simd::sum_of<T>(
                   x.cols, [](auto value) { return value; }, in) /
               static_cast<T>(x.cols);
      if (format == Format::exact) mean = stored(mean, format);
      // The rest of a vector that a row fills in part is 0, and so it must stay: differences are laid down first.
      T* const out = y.row(row).data();
      simd::transform<T>(
          x.cols, out, [mean](auto value) { return value - mean; }, in);
      const T sum = row_squares(std::span<const T>(out, static_cast<std::size_t>(x.cols)));
      const T inverse = T{1} / std::sqrt(sum / static_cast<T>(x.cols) + static_cast<T>(eps));
      simd::transform<T>(
          x.cols, out, [&](auto d, auto factor, auto more) { return rounding(d * inverse * factor + more); }, out,
          weight.data(), bias.data());
    }
  });
}

template <class T>
void sum_squares(MatrixView<const T> x, MatrixView<T> squares, Index column) {
  require_equal("sum_squares", "rows of the output", x.rows, squares.rows);
  for (Index row = 0; row < x.rows; ++row) squares(row, column) = row_squares(x.row(row));
}

template <class T>
void rms_norm_part(MatrixView<const T> x, MatrixView<const T> squares, Index column, Index width,
                   std::span<const T> weight, double eps, Format format, MatrixView<T> y) {
  require_equal("rms_norm_part", "rows of the squares", x.rows, squares.rows);
  norm_rows(
      x, [&](Index row) { return squares(row, column); }, width, weight, eps, format, y);
}

template void rms_norm(MatrixView<const float>, std::span<const float>, double, Format, MatrixView<float>);
template void rms_norm(MatrixView<const double>, std::span<const double>, double, Format, MatrixView<double>);

template void layer_norm(MatrixView<const float>, std::span<const float>, std::span<const float>, double, Format,
                         MatrixView<float>);
template void layer_norm(MatrixView<const double>, std::span<const double>, std::span<const double>, double, Format,
                         MatrixView<double>);
template void sum_squares(MatrixView<const float>, MatrixView<float>, Index);
template void sum_squares(MatrixView<const double>, MatrixView<double>, Index);
template void rms_norm_part(MatrixView<const float>, MatrixView<const float>, Index, Index, std::span<const float>,
                            double, Format, MatrixView<float>);
template void rms_norm_part(MatrixView<const double>, MatrixView<const double>, Index, Index, std::span<const double>,
                            double, Format, MatrixView<double>);

}  // namespace shardproof::ops
