#include "ops/elementwise.h"

#include "ops/internal/rounding.h"
#include "ops/shape.h"

namespace shardproof::ops {

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

}  // namespace shardproof::ops
