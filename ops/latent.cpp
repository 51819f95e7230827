#include "ops/latent.h"

#include <algorithm>
#include <cmath>

#include "ops/internal/gemm.h"
#include "ops/internal/panel.h"
#include "ops/internal/parallel.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// Rows of a weight that few queries walk side by side, each as long as it is: the processor's prefetcher follows that
/// many streams.
constexpr Index kStreams = 8;

template <class T>
void require_weight(const char* op, MatrixView<const T> weight, const LatentHead& head, Index heads) {
  if (head.still < 0) throw ShapeError(op, "still elements of a head", 0, head.still);
  if (head.turned < 0) throw ShapeError(op, "turned elements of a head", 0, head.turned);
  if (head.value_dim < 1) throw ShapeError(op, "columns of a value", 1, head.value_dim);
  require_equal(op, "rows of the weight", heads * (head.still + head.value_dim), weight.rows);
}

/// out[tokens, rank] = q[tokens, still] * w[still, rank]; tail is for the last columns, fewer than a panel has.
template <class T>
void absorb_head(MatrixView<const T> q, MatrixView<const T> w, Matrix<T>& tail, MatrixView<T> out) {
  constexpr Index kWidth = panel::kWidth<T>;
  const Index whole = w.cols / kWidth * kWidth, rest = w.cols - whole;
  // Few queries read the weight from memory, as it lies; many find a strip of it in the cache again.
  const Index at_once = q.rows <= panel::kRows ? kStreams : std::max<Index>(w.rows, 1);
  for (Index i = 0; i < w.rows; i += at_once) {
    const Index depth = std::min(at_once, w.rows - i);
    const auto start = i == 0 ? panel::Start::zero : panel::Start::sum_so_far;
    for (Index column = 0; column < whole; column += kWidth) {
      for (Index t = 0; t < q.rows; t += panel::kRows) {
        panel::multiply<T>(q.row(t).data() + i, q.stride, std::min(panel::kRows, q.rows - t), w.row(i).data() + column,
                           w.stride, depth, start, out.row(t).data() + column, out.stride);
      }
    }
  }
  if (w.rows == 0) {
    for (Index t = 0; t < out.rows; ++t) std::ranges::fill(out.row(t), T{0});
  }
  if (rest == 0 || w.rows == 0) return;
  for (Index i = 0; i < w.rows; ++i) std::copy_n(w.row(i).data() + whole, rest, tail.row(i).data());
  Matrix<T> sums(panel::kRows, kWidth);
  for (Index t = 0; t < q.rows; t += panel::kRows) {
    const Index rows = std::min(panel::kRows, q.rows - t);
    panel::multiply<T>(q.row(t).data(), q.stride, rows, tail.row(0).data(), kWidth, w.rows, panel::Start::zero,
                       sums.row(0).data(), kWidth);
    for (Index i = 0; i < rows; ++i) std::copy_n(sums.row(i).data(), rest, out.row(t + i).data() + whole);
  }
}

}  // namespace

template <class T>
void split_latent_heads(MatrixView<const T> product, MatrixView<const T> shared, Index value_dim, MatrixView<T> k,
                        MatrixView<T> v) {
  if (value_dim < 1) throw ShapeError("split_latent_heads", "columns of a value", 1, value_dim);
  const Index heads = v.cols / value_dim;
  require_equal("split_latent_heads", "columns of the values", heads * value_dim, v.cols);
  const Index still = heads == 0 ? 0 : product.cols / heads - value_dim;
  require_equal("split_latent_heads", "columns of the product", heads * (still + value_dim), product.cols);
  require_equal("split_latent_heads", "columns of the keys", heads * (still + shared.cols), k.cols);
  for (const Index rows : {shared.rows, k.rows, v.rows})
    require_equal("split_latent_heads", "rows", product.rows, rows);
  for (Index t = 0; t < product.rows; ++t) {
    const T* from = product.row(t).data();
    T* key = k.row(t).data();
    T* value = v.row(t).data();
    for (Index head = 0; head < heads; ++head) {
      key = std::copy_n(from, still, key);
      key = std::ranges::copy(shared.row(t), key).out;
      value = std::copy_n(from + still, value_dim, value);
      from += still + value_dim;
    }
  }
}

template <class T>
void absorb_queries(MatrixView<const T> q, MatrixView<const T> weight, const LatentHead& head, MatrixView<T> out) {
  constexpr const char* kOp = "absorb_queries";
  const Index rank = weight.cols, key_dim = head.key_dim();
  const Index heads = key_dim > 0 ? q.cols / key_dim : 0;
  require_equal(kOp, "columns of the queries", heads * key_dim, q.cols);
  require_weight(kOp, weight, head, heads);
  require_equal(kOp, "columns of the output", heads * (rank + head.turned), out.cols);
  require_equal(kOp, "rows of the output", q.rows, out.rows);
  if (out.size() == 0) return;
  parallel_for(heads, 1, [&](Index first, Index last) {
    Matrix<T> tail = Matrix<T>::zeros(head.still, panel::kWidth<T>);
    for (Index h = first; h < last; ++h) {
      const MatrixView<const T> query = q.col_range(h * key_dim, key_dim);
      const MatrixView<T> absorbed = out.col_range(h * (rank + head.turned), rank + head.turned);
      absorb_head(query.col_range(0, head.still), weight.row_range(h * (head.still + head.value_dim), head.still), tail,
                  absorbed.col_range(0, rank));
      for (Index t = 0; t < q.rows; ++t) {
        std::copy_n(query.row(t).data() + head.still, head.turned, absorbed.row(t).data() + rank);
      }
    }
  });
}

template <class T>
AttentionOptions<T> latent_options(const LatentHead& head, Index rank, double scale) {
  const double of_plain = 1 / std::sqrt(static_cast<double>(head.key_dim()));
  return {.head_dim = rank + head.turned, .value_dim = rank, .scale = scale != 0 ? scale : of_plain};
}
template AttentionOptions<float> latent_options(const LatentHead&, Index, double);
template AttentionOptions<double> latent_options(const LatentHead&, Index, double);

template <class T>
void attend_to_latents(MatrixView<const T> q, MatrixView<const T> latents, std::span<const AttentionSpan> spans,
                       Index block_size, const LatentHead& head, double scale, Format format, MatrixView<T> out) {
  const Index rank = latents.cols - head.turned;
  if (rank < 1) throw ShapeError("attend_to_latents", "columns of a latent", head.turned + 1, latents.cols);
  attention<T>(q, latents, latents.col_range(0, rank), spans, block_size, latent_options<T>(head, rank, scale), format,
               out);
}

template <class T>
void expand_context(MatrixView<const T> latents, MatrixView<const T> weight, const LatentHead& head,
                    MatrixView<T> out) {
  constexpr const char* kOp = "expand_context";
  const Index rank = weight.cols, value_dim = head.value_dim;
  const Index heads = rank > 0 ? latents.cols / rank : 0;
  require_weight(kOp, weight, head, heads);
  require_equal(kOp, "columns of the latents", heads * rank, latents.cols);
  require_equal(kOp, "columns of the output", heads * value_dim, out.cols);
  require_equal(kOp, "rows of the output", latents.rows, out.rows);
  if (out.size() == 0) return;
  const gemm::Weights weights = gemm::where_lie(heads * value_dim * rank * Index{sizeof(T)});
  gemm::PackedRows<T> packed;
  for (Index h = 0; h < heads; ++h) {
    const MatrixView<const T> values = weight.row_range(h * (head.still + value_dim) + head.still, value_dim);
    for (Index t = 0; t < latents.rows; t += gemm::rows_per_pack<T>()) {
      const Index rows = std::min(gemm::rows_per_pack<T>(), latents.rows - t);
      packed.pack(latents.col_range(h * rank, rank).row_range(t, rows));
      gemm::multiply<T>(packed, values, out.col_range(h * value_dim, value_dim).row_range(t, rows), weights);
    }
  }
}

template void split_latent_heads(MatrixView<const float>, MatrixView<const float>, Index, MatrixView<float>,
                                 MatrixView<float>);
template void split_latent_heads(MatrixView<const double>, MatrixView<const double>, Index, MatrixView<double>,
                                 MatrixView<double>);

template void absorb_queries(MatrixView<const float>, MatrixView<const float>, const LatentHead&, MatrixView<float>);
template void absorb_queries(MatrixView<const double>, MatrixView<const double>, const LatentHead&, MatrixView<double>);
template void attend_to_latents(MatrixView<const float>, MatrixView<const float>, std::span<const AttentionSpan>, Index,
                                const LatentHead&, double, Format, MatrixView<float>);
template void attend_to_latents(MatrixView<const double>, MatrixView<const double>, std::span<const AttentionSpan>,
                                Index, const LatentHead&, double, Format, MatrixView<double>);
template void expand_context(MatrixView<const float>, MatrixView<const float>, const LatentHead&, MatrixView<float>);
template void expand_context(MatrixView<const double>, MatrixView<const double>, const LatentHead&, MatrixView<double>);

}  // namespace shardproof::ops
