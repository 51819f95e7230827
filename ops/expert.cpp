#include "ops/expert.h"

#include <algorithm>

#include "ops/internal/gemm.h"
#include "ops/linear.h"
#include "ops/shape.h"
#include "ops/swiglu.h"

namespace shardproof::ops {

namespace {

// Columns of gate and up that are made together and go through the activation while they are in the cache.
constexpr Index kColumns = 128;

/// Into rows from `row` and columns from `column` of `to`, if it has rows.
template <class T>
void copy_step(MatrixView<const T> from, Index row, Index column, MatrixView<T> to) {
  if (to.rows == 0) return;
  for (Index i = 0; i < from.rows; ++i) std::ranges::copy(from.row(i), to.row(row + i).data() + column);
}

template <class T>
void require_step(MatrixView<T> step, Index rows, Index width) {
  if (step.rows == 0) return;
  require_equal("expert", "rows of a step", rows, step.rows);
  require_equal("expert", "columns of a step", width, step.cols);
}

}  // namespace

template <class T>
void expert(MatrixView<const T> x, MatrixView<const T> w_gate, MatrixView<const T> w_up, MatrixView<const T> w_down,
            Format format, MatrixView<T> y, const ExpertSteps<T>& steps) {
  require_equal("expert", "rows of the up weights", w_gate.rows, w_up.rows);
  require_equal("expert", "columns of the gate weights", x.cols, w_gate.cols);
  require_equal("expert", "columns of the up weights", x.cols, w_up.cols);
  require_equal("expert", "rows of the down weights", y.cols, w_down.rows);
  require_equal("expert", "columns of the down weights", w_gate.rows, w_down.cols);
  require_equal("expert", "rows of the output", x.rows, y.rows);
  const Index width = w_gate.rows;
  for (const MatrixView<T>& step : {steps.gate, steps.up, steps.activation}) require_step(step, x.rows, width);
  if (x.rows == 0) return;
  const gemm::Weights weights = gemm::where_lie(3 * width * x.cols * Index{sizeof(T)});
  const Index rows_at_once = std::min(x.rows, gemm::rows_per_pack<T>());
  Matrix<T> hidden(rows_at_once, width), gate(rows_at_once, kColumns), up(rows_at_once, kColumns);
  gemm::PackedRows<T> packed;
  for (Index i = 0; i < x.rows; i += rows_at_once) {
    const Index rows = std::min(rows_at_once, x.rows - i);
    packed.pack(x.row_range(i, rows));
    for (Index j = 0; j < width; j += kColumns) {
      const Index columns = std::min(kColumns, width - j);
      const MatrixView<T> g(gate.data(), rows, columns), u(up.data(), rows, columns);
      gemm::multiply<T>(packed, w_gate.row_range(j, columns), g, weights);
      gemm::multiply<T>(packed, w_up.row_range(j, columns), u, weights);
      round_to(g.span(), format);
      round_to(u.span(), format);
      swiglu<T>(g, u, format, hidden.view().row_range(0, rows).col_range(j, columns));
      copy_step<T>(g, i, j, steps.gate);
      copy_step<T>(u, i, j, steps.up);
    }
    copy_step<T>(hidden.view().row_range(0, rows), i, 0, steps.activation);
    packed.pack(hidden.view().row_range(0, rows));
    gemm::multiply<T>(packed, w_down, y.row_range(i, rows), weights);
  }
}

Cost expert_cost(Index tokens, Index hidden, Index width, int bytes_per_element) {
  if (tokens == 0) return {};
  return 2 * linear_cost(tokens, width, hidden, bytes_per_element) + swiglu_cost(tokens, width, bytes_per_element) +
         linear_cost(tokens, hidden, width, bytes_per_element);
}

template void expert(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                     Format, MatrixView<float>, const ExpertSteps<float>&);
template void expert(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                     MatrixView<const double>, Format, MatrixView<double>, const ExpertSteps<double>&);

}  // namespace shardproof::ops
