#include "ops/norm.h"

#include <algorithm>
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
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index row = 0; row < x.rows; ++row) {
      const T* in = x.row(row).data();
      const T sum = simd::sum_of<T>(
          x.cols, [](auto value) { return value * value; }, in);
      const T inverse = T{1} / std::sqrt(sum / static_cast<T>(x.cols) + static_cast<T>(eps));
      const auto scale = [&](auto value, auto factor) { return rounding((value * inverse) * factor); };
      // The next row is on its way while this one, now in the cache, is written.
      const T* next = x.row(std::min(row + 1, x.rows - 1)).data();
      const auto ask = [next](Index i) { __builtin_prefetch(next + i); };
      simd::transform_asking<T>(x.cols, y.row(row).data(), ask, scale, in, weight.data());
    }
  });
}

template void rms_norm(MatrixView<const float>, std::span<const float>, double, Format, MatrixView<float>);
template void rms_norm(MatrixView<const double>, std::span<const double>, double, Format, MatrixView<double>);

}  // namespace shardproof::ops
