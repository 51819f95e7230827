#include "ops/expert.h"

#include "ops/linear.h"
#include "ops/shape.h"
#include "ops/swiglu.h"

namespace shardproof::ops {

template <class T>
void expert(MatrixView<const T> x, MatrixView<const T> w_gate, MatrixView<const T> w_up, MatrixView<const T> w_down,
            Format format, MatrixView<T> y) {
  require_equal("expert", "rows of the up weights", w_gate.rows, w_up.rows);
  require_equal("expert", "columns of the gate weights", x.cols, w_gate.cols);
  require_equal("expert", "columns of the up weights", x.cols, w_up.cols);
  require_equal("expert", "rows of the down weights", y.cols, w_down.rows);
  require_equal("expert", "columns of the down weights", w_gate.rows, w_down.cols);
  require_equal("expert", "rows of the output", x.rows, y.rows);
  if (x.rows == 0) return;
  Matrix<T> gate(x.rows, w_gate.rows), up(x.rows, w_up.rows);
  linear<T>(x, w_gate, gate);
  linear<T>(x, w_up, up);
  store(gate.span(), format);
  store(up.span(), format);
  swiglu<T>(gate, up, format, gate);
  linear<T>(gate, w_down, y);
}

Cost expert_cost(Index tokens, Index hidden, Index width, int bytes_per_element) {
  if (tokens == 0) return {};
  return 2 * linear_cost(tokens, width, hidden, bytes_per_element) + swiglu_cost(tokens, width, bytes_per_element) +
         linear_cost(tokens, hidden, width, bytes_per_element);
}

template void expert(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                     Format, MatrixView<float>);
template void expert(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                     MatrixView<const double>, Format, MatrixView<double>);

}  // namespace shardproof::ops
