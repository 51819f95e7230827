#include "ops/norm.h"

#include <cmath>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void rms_norm(MatrixView<const T> x, std::span<const T> weight, double eps, Format format, MatrixView<T> y) {
  require_equal("rms_norm", "size of the weight", x.cols, static_cast<Index>(weight.size()));
  require_equal("rms_norm", "rows of the output", x.rows, y.rows);
  require_equal("rms_norm", "columns of the output", x.cols, y.cols);
  if (y.size() == 0) return;
  constexpr Index kPerLine = 64 / static_cast<Index>(sizeof(T));
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index row = 0; row < x.rows; ++row) {
      const T* in = x.row(row).data();
      const T sum = simd::sum_of<T>(
          x.cols, [](auto value) { return value * value; }, in);
      const T inverse = T{1} / std::sqrt(sum / static_cast<T>(x.cols) + static_cast<T>(eps));
      // The next row is on its way while this one is computed on.
      if (row + 1 < x.rows) {
        for (Index i = 0; i < x.cols; i += kPerLine) __builtin_prefetch(x.row(row + 1).data() + i);
      }
      const auto scale = [&](auto value, auto factor) { return rounding((value * inverse) * factor); };
      simd::transform<T>(x.cols, y.row(row).data(), scale, in, weight.data());
    }
  });
}

template void rms_norm(MatrixView<const float>, std::span<const float>, double, Format, MatrixView<float>);
template void rms_norm(MatrixView<const double>, std::span<const double>, double, Format, MatrixView<double>);

}  // namespace shardproof::ops
