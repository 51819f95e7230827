#include "ops/elementwise.h"

#include "ops/internal/rounding.h"
#include "ops/internal/sigmoid.h"
#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void add_bias(MatrixView<T> x, std::span<const T> bias) {
  require_equal("add_bias", "values of the bias", x.cols, static_cast<Index>(bias.size()));
  for (Index i = 0; i < x.rows; ++i) {
    T* const row = x.row(i).data();
    simd::transform<T>(
        x.cols, row, [](auto a, auto b) { return a + b; }, row, bias.data());
  }
}

template <class T>
void gate_rows(MatrixView<const T> x, MatrixView<const T> logits, Format format, MatrixView<T> out) {
  require_equal("gate_rows", "rows of the logits", x.rows, logits.rows);
  require_equal("gate_rows", "columns of the logits", 1, logits.cols);
  require_equal("gate_rows", "rows of the output", x.rows, out.rows);
  require_equal("gate_rows", "columns of the output", x.cols, out.cols);
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index i = 0; i < x.rows; ++i) {
      const T open = simd::sigmoid<T>(logits(i, 0), format);
      simd::transform<T>(
          x.cols, out.row(i).data(), [&](auto value) { return rounding(value * open); }, x.row(i).data());
    }
  });
}

template void add_bias(MatrixView<float>, std::span<const float>);
template void add_bias(MatrixView<double>, std::span<const double>);
template void gate_rows(MatrixView<const float>, MatrixView<const float>, Format, MatrixView<float>);
template void gate_rows(MatrixView<const double>, MatrixView<const double>, Format, MatrixView<double>);

template <class T>
void add(MatrixView<const T> x, MatrixView<const T> y, Format format, MatrixView<T> out) {
  require_equal("add", "rows of y", x.rows, y.rows);
  require_equal("add", "columns of y", x.cols, y.cols);
  require_equal("add", "rows of the output", x.rows, out.rows);
  require_equal("add", "columns of the output", x.cols, out.cols);
  simd::with_rounding<T>(format, [&](auto rounding) {
    simd::for_each_run(
        out,
        [&](Index count, T* to, const T* a, const T* b) {
          simd::transform<T>(
              count, to, [&](auto p, auto q) { return rounding(p + q); }, a, b);
        },
        x, y);
  });
}

template void add(MatrixView<const float>, MatrixView<const float>, Format, MatrixView<float>);
template void add(MatrixView<const double>, MatrixView<const double>, Format, MatrixView<double>);

template <class T>
void add_scaled(MatrixView<const T> x, MatrixView<const T> y, double factor, Format format, MatrixView<T> out) {
  require_equal("add_scaled", "rows of y", x.rows, y.rows);
  require_equal("add_scaled", "columns of y", x.cols, y.cols);
  require_equal("add_scaled", "rows of the output", x.rows, out.rows);
  require_equal("add_scaled", "columns of the output", x.cols, out.cols);
  const T times = static_cast<T>(factor);
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index i = 0; i < x.rows; ++i) {
      simd::transform<T>(
          x.cols, out.row(i).data(), [&](auto p, auto q) { return rounding(p + rounding(q * times)); }, x.row(i).data(),
          y.row(i).data());
    }
  });
}

namespace {

template <class T, class Change>
void change_each(MatrixView<T> x, Format format, const Change& change) {
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index i = 0; i < x.rows; ++i) {
      T* const row = x.row(i).data();
      simd::transform<T>(
          x.cols, row, [&](auto value) { return rounding(change(value)); }, row);
    }
  });
}

}  // namespace

template <class T>
void scale(MatrixView<T> x, double factor, Format format) {
  change_each(x, format, [times = static_cast<T>(factor)](auto value) { return value * times; });
}

template <class T>
void divide(MatrixView<T> x, double divisor, Format format) {
  change_each(x, format, [by = static_cast<T>(divisor)](auto value) { return value / by; });
}

template void add_scaled(MatrixView<const float>, MatrixView<const float>, double, Format, MatrixView<float>);
template void add_scaled(MatrixView<const double>, MatrixView<const double>, double, Format, MatrixView<double>);
template void scale(MatrixView<float>, double, Format);
template void scale(MatrixView<double>, double, Format);
template void divide(MatrixView<float>, double, Format);
template void divide(MatrixView<double>, double, Format);

}  // namespace shardproof::ops
