#include "ops/linear.h"

#include <Eigen/Core>

#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void linear(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y) {
  require_equal("linear", "columns of the weights", x.cols, w.cols);
  require_equal("linear", "rows of the output", x.rows, y.rows);
  require_equal("linear", "columns of the output", w.rows, y.cols);
  if (y.size() == 0) return;
  using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using ConstMap = Eigen::Map<const Dense, Eigen::Unaligned, Eigen::OuterStride<>>;
  using Map = Eigen::Map<Dense, Eigen::Unaligned, Eigen::OuterStride<>>;
  const ConstMap input(x.data, x.rows, x.cols, Eigen::OuterStride<>(x.stride));
  const ConstMap weights(w.data, w.rows, w.cols, Eigen::OuterStride<>(w.stride));
  Map(y.data, y.rows, y.cols, Eigen::OuterStride<>(y.stride)).noalias() = input * weights.transpose();
}

template void linear(MatrixView<const float>, MatrixView<const float>, MatrixView<float>);
template void linear(MatrixView<const double>, MatrixView<const double>, MatrixView<double>);

}  // namespace shardproof::ops
