#include "ops/embedding.h"

#include <algorithm>

#include "ops/shape.h"

namespace shardproof::ops {

namespace {

template <class T, class Id>
void look_up(std::span<const Id> ids, MatrixView<const T> table, Index vocab_begin, MatrixView<T> out) {
  require_equal("embed", "rows of the output", static_cast<Index>(ids.size()), out.rows);
  require_equal("embed", "columns of the output", table.cols, out.cols);
  for (Index t = 0; t < out.rows; ++t) {
    const Index row = Index{ids[static_cast<std::size_t>(t)]} - vocab_begin;
    if (row >= 0 && row < table.rows) {
      std::copy_n(table.row(row).data(), out.cols, out.row(t).data());
    } else {
      std::fill_n(out.row(t).data(), out.cols, T{0});
    }
  }
}

}  // namespace

template <class T>
void embed(std::span<const std::int32_t> ids, MatrixView<const T> table, Index vocab_begin, MatrixView<T> out) {
  look_up(ids, table, vocab_begin, out);
}

template <class T>
void embed(std::span<const std::int64_t> ids, MatrixView<const T> table, Index vocab_begin, MatrixView<T> out) {
  look_up(ids, table, vocab_begin, out);
}

template void embed(std::span<const std::int32_t>, MatrixView<const float>, Index, MatrixView<float>);
template void embed(std::span<const std::int32_t>, MatrixView<const double>, Index, MatrixView<double>);
template void embed(std::span<const std::int64_t>, MatrixView<const float>, Index, MatrixView<float>);
template void embed(std::span<const std::int64_t>, MatrixView<const double>, Index, MatrixView<double>);

}  // namespace shardproof::ops
