// Compiled with contraction on, for the exponential. Outside of it no product meets a sum, so `exact` and fp64
// divisions and products keep their single roundings.
#include "ops/swiglu.h"

#include "ops/internal/exact_exp.h"
#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// combine(gate, up, exponential) of every element, rounded.
template <class T, class Combine>
void gated(MatrixView<const T> gate, MatrixView<const T> up, Format format, MatrixView<T> out, const Combine& combine) {
  require_equal("swiglu", "rows of up", gate.rows, up.rows);
  require_equal("swiglu", "columns of up", gate.cols, up.cols);
  require_equal("swiglu", "rows of the output", gate.rows, out.rows);
  require_equal("swiglu", "columns of the output", gate.cols, out.cols);
  simd::with_rounding<T>(format, [&](auto rounding) {
    const auto run = [&](auto exponential) {
      simd::for_each_run(
          out,
          [&](Index count, T* to, const T* g, const T* u) {
            simd::transform<T>(
                count, to, [&](auto a, auto b) { return rounding(combine(a, b, exponential)); }, g, u);
          },
          gate, up);
    };
    if (format == Format::exact) {
      run([exact = ExactExponential()](simd::Vec<T> x) {
        for (Index lane = 0; lane < simd::kLanes<T>; ++lane)
          x[lane] = static_cast<T>(exact(static_cast<double>(x[lane])));
        return x;
      });
    } else {
      run([](simd::Vec<T> x) { return simd::exponential<T>(x); });
    }
  });
}

}  // namespace

template <class T>
void swiglu(MatrixView<const T> gate, MatrixView<const T> up, Format format, MatrixView<T> out) {
  gated<T>(gate, up, format, out,
           [](auto a, auto b, const auto& exponential) { return (a / (exponential(-a) + T{1})) * b; });
}

template <class T>
void clamped_swiglu(MatrixView<const T> gate, MatrixView<const T> up, double limit, Format format, MatrixView<T> out) {
  const simd::Vec<T> most = simd::broadcast(static_cast<T>(limit)),
                     alpha = simd::broadcast(static_cast<T>(kClampedSwigluAlpha));
  gated<T>(gate, up, format, out, [&](simd::Vec<T> a, simd::Vec<T> b, const auto& exponential) {
    const simd::Vec<T> g = a > most ? most : a;
    const simd::Vec<T> u = b > most ? most : (b < -most ? -most : b);
    const simd::Vec<T> activated = g / (exponential(-(alpha * g)) + T{1});
    return (u + T{1}) * activated;
  });
}

template void clamped_swiglu(MatrixView<const float>, MatrixView<const float>, double, Format, MatrixView<float>);
template void clamped_swiglu(MatrixView<const double>, MatrixView<const double>, double, Format, MatrixView<double>);
template void swiglu(MatrixView<const float>, MatrixView<const float>, Format, MatrixView<float>);
template void swiglu(MatrixView<const double>, MatrixView<const double>, Format, MatrixView<double>);

}  // namespace shardproof::ops
