#include "ops/attention.h"

#include <cmath>

#include "ops/internal/attend.h"
#include "ops/internal/parallel.h"
#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, const AttentionOptions<T>& options, Format format,
               MatrixView<T> out) {
  const Index head_dim = options.head_dim, value_dim = options.value_dim > 0 ? options.value_dim : head_dim;
  if (head_dim < 1) throw ShapeError("attention", "head_dim", 1, head_dim);
  require_equal("attention", "query columns beyond a whole number of heads", 0, q.cols % head_dim);
  require_equal("attention", "key columns beyond a whole number of heads", 0, k.cols % head_dim);
  require_equal("attention", "columns of the values", k.cols / head_dim * value_dim, v.cols);
  require_equal("attention", "columns of the output", q.cols / head_dim * value_dim, out.cols);
  if (!options.sinks.empty()) {
    require_equal("attention", "sinks", q.cols / head_dim, static_cast<Index>(options.sinks.size()));
  }
  require_equal("attention", "rows of the keys", q.rows, k.rows);
  require_equal("attention", "rows of the values", q.rows, v.rows);
  require_equal("attention", "rows of the output", q.rows, out.rows);
  require_equal("attention", "end of the last sequence", q.rows, offsets.empty() ? 0 : offsets.back());
  require_equal("attention", "begin of the first sequence", 0, offsets.empty() ? 0 : offsets.front());
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    if (offsets[s] < offsets[s - 1]) throw ShapeError("attention", "end of a sequence", offsets[s - 1], offsets[s]);
  }
  if (out.size() == 0) return;
  if (k.cols == 0 || q.cols % k.cols != 0) {
    throw ShapeError("attention", "query heads beyond a multiple of the key heads", 0,
                     k.cols == 0 ? q.cols / head_dim : q.cols % k.cols / head_dim);
  }

  const Index group = q.cols / k.cols;
  const double scale = options.scale != 0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
  const auto attend = format == Format::exact ? &attend_in_two_passes<T> : &attend_in_tiles<T>;
  const Index kv_heads = k.cols / head_dim, sequences = static_cast<Index>(offsets.size()) - 1;
  parallel_for(sequences * kv_heads, 1, [&](Index first, Index last) {
    for (Index part = first; part < last; ++part) {
      const Index begin = offsets[static_cast<std::size_t>(part / kv_heads)];
      const Index length = offsets[static_cast<std::size_t>(part / kv_heads) + 1] - begin;
      const Index kv_head = part % kv_heads;
      if (length == 0) continue;
      const auto columns = [&](auto matrix, Index width) {
        return matrix.row_range(begin, length).col_range(kv_head * width, width);
      };
      const HeadOptions<T> heads{.scale = static_cast<T>(scale),
                                 .window = options.window > 0 ? options.window : length,
                                 .sinks = options.sinks.empty() ? nullptr : options.sinks.data() + kv_head * group};
      attend(columns(q, group * head_dim), columns(k, head_dim), columns(v, value_dim), heads, format,
             columns(out, group * value_dim));
    }
  });
}

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, Index head_dim, Format format, MatrixView<T> out) {
  attention<T>(q, k, v, offsets, AttentionOptions<T>{.head_dim = head_dim}, format, out);
}

template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const std::int64_t>, const AttentionOptions<float>&, Format, MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const std::int64_t>, const AttentionOptions<double>&, Format, MatrixView<double>);
template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<double>);

}  // namespace shardproof::ops
