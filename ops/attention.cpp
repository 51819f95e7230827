#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/internal/attend.h"
#include "ops/internal/parallel.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

template <class T>
void require_shapes(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                    const AttentionOptions<T>& options, MatrixView<T> out) {
  const Index head_dim = options.head_dim, value_dim = options.value_dim > 0 ? options.value_dim : head_dim;
  if (head_dim < 1) throw ShapeError("attention", "head_dim", 1, head_dim);
  require_equal("attention", "query columns beyond a whole number of heads", 0, q.cols % head_dim);
  require_equal("attention", "key columns beyond a whole number of heads", 0, k.cols % head_dim);
  require_equal("attention", "columns of the values", k.cols / head_dim * value_dim, v.cols);
  require_equal("attention", "columns of the output", q.cols / head_dim * value_dim, out.cols);
  if (!options.sinks.empty()) {
    require_equal("attention", "sinks", q.cols / head_dim, static_cast<Index>(options.sinks.size()));
  }
  require_equal("attention", "rows of the values", k.rows, v.rows);
  require_equal("attention", "rows of the output", q.rows, out.rows);
}

/// The span's keys lie within k, which has `rows`.
void require_inside(const AttentionSpan& span, Index block_size, Index rows) {
  if (span.rows < 0) throw ShapeError("attention", "rows of a span", 0, span.rows);
  if (span.past < 0) throw ShapeError("attention", "past tokens of a span", 0, span.past);
  const Index tokens = span.past + span.rows;
  if (block_size == 0) {
    if (span.first_key < 0 || span.first_key > rows || tokens > rows - span.first_key) {
      throw ShapeError("attention", "keys from a span's first on", tokens, rows - span.first_key);
    }
    return;
  }
  const Index blocks = (tokens + block_size - 1) / block_size;
  if (std::ssize(span.blocks) < blocks) {
    throw ShapeError("attention", "blocks of a span", blocks, std::ssize(span.blocks));
  }
  for (const std::int32_t block : span.blocks.first(static_cast<std::size_t>(blocks))) {
    if (block < 0 || block >= rows / block_size) throw ShapeError("attention", "a block", rows / block_size - 1, block);
  }
}

}  // namespace

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const AttentionSpan> spans, Index block_size, const AttentionOptions<T>& options,
               Format format, MatrixView<T> out) {
  require_shapes(q, k, v, options, out);
  std::vector<Index> begins;
  Index rows = 0;
  for (const AttentionSpan& span : spans) {
    require_inside(span, block_size, k.rows);
    begins.push_back(rows);
    rows += span.rows;
  }
  require_equal("attention", "end of the last sequence", q.rows, rows);
  if (out.size() == 0) return;
  if (k.cols == 0 || q.cols % k.cols != 0) {
    throw ShapeError("attention", "query heads beyond a multiple of the key heads", 0,
                     k.cols == 0 ? q.cols / options.head_dim : q.cols % k.cols / options.head_dim);
  }
  const Index head_dim = options.head_dim, value_dim = options.value_dim > 0 ? options.value_dim : head_dim;
  const Index group = q.cols / k.cols, kv_heads = k.cols / head_dim;
  const double scale = options.scale != 0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
  const auto attend = format == Format::exact ? &attend_in_two_passes<T> : &attend_in_tiles<T>;
  parallel_for(std::ssize(spans) * kv_heads, 1, [&](Index first, Index last) {
    for (Index part = first, together = 1; part < last; part += together) {
      const AttentionSpan& span = spans[static_cast<std::size_t>(part / kv_heads)];
      const Index begin = begins[static_cast<std::size_t>(part / kv_heads)], kv_head = part % kv_heads;
      const bool from_one = span.rows == 1 && format != Format::exact;
      together = from_one ? std::min(kv_heads - kv_head, last - part) : 1;
      if (span.rows == 0) continue;
      const auto queries = [&](auto matrix, Index width) {
        return matrix.row_range(begin, span.rows).col_range(kv_head * width, width * together);
      };
      const auto keys = [&](MatrixView<const T> matrix, Index width) {
        MatrixView<const T> columns = matrix.col_range(kv_head * width, width * together);
        if (block_size > 0) return TokenRowsOf<T>{columns, span.blocks.data(), block_size};
        return TokenRowsOf<T>{columns.row_range(span.first_key, span.past + span.rows)};
      };
      const HeadOptions<T> heads{.scale = static_cast<T>(scale),
                                 .window = options.window > 0 ? options.window : span.past + span.rows,
                                 .sinks = options.sinks.empty() ? nullptr : options.sinks.data() + kv_head * group};
      if (from_one) {
        attend_from_one<T>(queries(q, group * head_dim).row(0), keys(k, head_dim), keys(v, value_dim), together,
                           span.past, heads, format, queries(out, group * value_dim).row(0));
        continue;
      }
      attend(queries(q, group * head_dim), keys(k, head_dim), keys(v, value_dim), span.past, heads, format,
             queries(out, group * value_dim));
    }
  });
}

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, const AttentionOptions<T>& options, Format format,
               MatrixView<T> out) {
  require_equal("attention", "rows of the keys", q.rows, k.rows);
  require_equal("attention", "end of the last sequence", q.rows, offsets.empty() ? 0 : offsets.back());
  require_equal("attention", "begin of the first sequence", 0, offsets.empty() ? 0 : offsets.front());
  std::vector<AttentionSpan> spans;
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    if (offsets[s] < offsets[s - 1]) throw ShapeError("attention", "end of a sequence", offsets[s - 1], offsets[s]);
    spans.push_back({.rows = offsets[s] - offsets[s - 1], .first_key = offsets[s - 1]});
  }
  attention<T>(q, k, v, spans, 0, options, format, out);
}

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, Index head_dim, Format format, MatrixView<T> out) {
  attention<T>(q, k, v, offsets, AttentionOptions<T>{.head_dim = head_dim}, format, out);
}

template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const AttentionSpan>, Index, const AttentionOptions<float>&, Format,
                        MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const AttentionSpan>, Index, const AttentionOptions<double>&, Format,
                        MatrixView<double>);
template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const std::int64_t>, const AttentionOptions<float>&, Format, MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const std::int64_t>, const AttentionOptions<double>&, Format, MatrixView<double>);
template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<double>);

}  // namespace shardproof::ops
