#include "ops/expert.h"

#include <algorithm>

#include "ops/elementwise.h"
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

/// The bias of the columns from `column` on; none where there is none.
template <class T>
void add_bias_from(MatrixView<T> y, std::span<const T> bias, Index column) {
  if (bias.empty()) return;
  add_bias<T>(y, bias.subspan(static_cast<std::size_t>(column), static_cast<std::size_t>(y.cols)));
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
            Format format, MatrixView<T> y, const ExpertSteps<T>& steps, const ExpertOptions<T>& options) {
  require_equal("expert", "rows of the up weights", w_gate.rows, w_up.rows);
  require_equal("expert", "columns of the gate weights", x.cols, w_gate.cols);
  require_equal("expert", "columns of the up weights", x.cols, w_up.cols);
  require_equal("expert", "rows of the down weights", y.cols, w_down.rows);
  require_equal("expert", "columns of the down weights", w_gate.rows, w_down.cols);
  require_equal("expert", "rows of the output", x.rows, y.rows);
  const Index width = w_gate.rows;
  if (!options.gate_bias.empty()) {
    require_equal("expert", "values of the gate bias", width, static_cast<Index>(options.gate_bias.size()));
  }
  if (!options.up_bias.empty()) {
    require_equal("expert", "values of the up bias", width, static_cast<Index>(options.up_bias.size()));
  }
  if (!options.down_bias.empty()) {
    require_equal("expert", "values of the down bias", y.cols, static_cast<Index>(options.down_bias.size()));
  }
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
      add_bias_from<T>(g, options.gate_bias, j);
      add_bias_from<T>(u, options.up_bias, j);
      round_to(g.span(), format);
      round_to(u.span(), format);
      const MatrixView<T> h = hidden.view().row_range(0, rows).col_range(j, columns);
      if (options.swiglu_limit > 0) {
        clamped_swiglu<T>(g, u, options.swiglu_limit, format, h);
      } else {
        swiglu<T>(g, u, format, h);
      }
      copy_step<T>(g, i, j, steps.gate);
      copy_step<T>(u, i, j, steps.up);
    }
    copy_step<T>(hidden.view().row_range(0, rows), i, 0, steps.activation);
    packed.pack(hidden.view().row_range(0, rows));
    gemm::multiply<T>(packed, w_down, y.row_range(i, rows), weights);
    add_bias_from<T>(y.row_range(i, rows), options.down_bias, 0);
  }
}

Cost expert_cost(Index tokens, Index hidden, Index width, int bytes_per_element) {
  if (tokens == 0) return {};
  return 2 * linear_cost(tokens, width, hidden, bytes_per_element) + swiglu_cost(tokens, width, bytes_per_element) +
         linear_cost(tokens, hidden, width, bytes_per_element);
}

template void expert(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                     Format, MatrixView<float>, const ExpertSteps<float>&, const ExpertOptions<float>&);
template void expert(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                     MatrixView<const double>, Format, MatrixView<double>, const ExpertSteps<double>&,
                     const ExpertOptions<double>&);

}  // namespace shardproof::ops
