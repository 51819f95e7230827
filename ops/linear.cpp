#include "ops/linear.h"

#include <algorithm>

#include "ops/internal/gemm.h"
#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void linear(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y) {
  require_equal("linear", "columns of the weights", x.cols, w.cols);
  require_equal("linear", "rows of the output", x.rows, y.rows);
  require_equal("linear", "columns of the output", w.rows, y.cols);
  if (y.size() == 0) return;
  const gemm::Weights weights = gemm::where_lie(w.size() * Index{sizeof(T)});
  gemm::PackedRows<T> packed;
  for (Index i = 0; i < x.rows; i += gemm::rows_per_pack<T>()) {
    const Index rows = std::min(gemm::rows_per_pack<T>(), x.rows - i);
    packed.pack(x.row_range(i, rows));
    gemm::multiply<T>(packed, w, y.row_range(i, rows), weights);
  }
}

template void linear(MatrixView<const float>, MatrixView<const float>, MatrixView<float>);
template void linear(MatrixView<const double>, MatrixView<const double>, MatrixView<double>);

}  // namespace shardproof::ops
