#include "ops/permute.h"

#include <algorithm>

#include "ops/internal/rounding.h"
#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void gather_rows(MatrixView<const T> x, std::span<const std::int64_t> rows, MatrixView<T> out) {
  require_equal("gather_rows", "rows of the output", static_cast<Index>(rows.size()), out.rows);
  require_equal("gather_rows", "columns of the output", x.cols, out.cols);
  for (const Index row : rows) {
    if (row < 0 || row >= x.rows) throw ShapeError("gather_rows", "row (below the rows of x)", x.rows, row);
  }
  for (Index i = 0; i < out.rows; ++i) {
    std::copy_n(x.row(rows[static_cast<std::size_t>(i)]).data(), out.cols, out.row(i).data());
  }
}

template <class T>
void combine(MatrixView<const T> y, MatrixView<const std::int64_t> positions, MatrixView<const T> weights,
             Format format, MatrixView<T> out) {
  require_equal("combine", "rows of the positions", out.rows, positions.rows);
  require_equal("combine", "rows of the weights", out.rows, weights.rows);
  require_equal("combine", "columns of the weights", positions.cols, weights.cols);
  require_equal("combine", "columns of the output", y.cols, out.cols);
  for (Index t = 0; t < positions.rows; ++t) {
    for (const Index row : positions.row(t)) {
      if (row < kElsewhere || row >= y.rows) throw ShapeError("combine", "position (below the rows of y)", y.rows, row);
    }
  }
  const Index slots = positions.cols;
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index t = 0; t < out.rows; ++t) {
      T* const to = out.row(t).data();
      const auto column_block = [&](Index begin, auto load) {
        simd::Vec<T> sum{};
        for (Index s = 0; s < slots; ++s) {
          if (positions(t, s) == kElsewhere) continue;
          sum = sum + weights(t, s) * load(y.row(positions(t, s)).data() + begin);
        }
        return rounding(sum);
      };
      Index i = 0;
      for (; i + simd::kLanes<T> <= out.cols; i += simd::kLanes<T>) {
        simd::store<T>(to + i, column_block(i, [](const T* from) { return simd::load<T>(from); }));
      }
      if (const Index rest = out.cols - i; rest > 0) {
        const auto value = column_block(i, [&](const T* from) { return simd::load_partial<T>(from, rest); });
        simd::store_partial<T>(to + i, value, rest);
      }
    }
  });
}

template void gather_rows(MatrixView<const float>, std::span<const std::int64_t>, MatrixView<float>);
template void gather_rows(MatrixView<const double>, std::span<const std::int64_t>, MatrixView<double>);
template void combine(MatrixView<const float>, MatrixView<const std::int64_t>, MatrixView<const float>, Format,
                      MatrixView<float>);
template void combine(MatrixView<const double>, MatrixView<const std::int64_t>, MatrixView<const double>, Format,
                      MatrixView<double>);

}  // namespace shardproof::ops
