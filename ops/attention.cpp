#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// One head of one sequence: q, out [tokens, head_dim], k, v [tokens, head_dim].
template <class T, bool kExact, class Rounding>
void attend(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v, Rounding rounding,
            std::vector<T>& scores, MatrixView<T> out) {
  const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(q.cols)));
  scores.resize(static_cast<std::size_t>(q.rows));
  for (Index t = 0; t < q.rows; ++t) {
    const Index keys = t + 1;
    for (Index j = 0; j < keys; ++j) {
      const T dot = simd::sum_of<T>(
          q.cols, [](auto a, auto b) { return a * b; }, q.row(t).data(), k.row(j).data());
      scores[static_cast<std::size_t>(j)] = dot * scale;
    }
    if constexpr (kExact) {
      simd::transform<T>(
          keys, scores.data(), [](auto s) { return simd::round_to_multiple<T>(s, static_cast<T>(kActivationStep)); },
          scores.data());
    }
    const T largest = simd::largest_of<T>(keys, scores.data());
    simd::transform<T>(
        keys, scores.data(), [&](auto s) { return simd::softmax_term<T, kExact>(s - largest); }, scores.data());
    const T sum = simd::sum_of<T>(
        keys, [](auto p) { return p; }, scores.data());
    T* context = out.row(t).data();
    std::fill_n(context, out.cols, T{0});
    for (Index j = 0; j < keys; ++j) {
      const T p = scores[static_cast<std::size_t>(j)];
      simd::transform<T>(
          out.cols, context, [&](auto value, auto total) { return total + p * value; }, v.row(j).data(), context);
    }
    simd::transform<T>(
        out.cols, context, [&](auto total) { return rounding(total / sum); }, context);
  }
}

}  // namespace

template <class T>
void attention(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
               std::span<const std::int64_t> offsets, Index head_dim, Format format, MatrixView<T> out) {
  if (head_dim < 1) throw ShapeError("attention", "head_dim", 1, head_dim);
  require_equal("attention", "query columns beyond a whole number of heads", 0, q.cols % head_dim);
  require_equal("attention", "key columns beyond a whole number of heads", 0, k.cols % head_dim);
  require_equal("attention", "columns of the values", k.cols, v.cols);
  require_equal("attention", "columns of the output", q.cols, out.cols);
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

  const Index heads = q.cols / head_dim, queries_per_kv = q.cols / k.cols;
  std::vector<T> scores;
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (std::size_t s = 1; s < offsets.size(); ++s) {
      const Index begin = offsets[s - 1], length = offsets[s] - begin;
      for (Index head = 0; head < heads; ++head) {
        const Index column = head * head_dim, kv_column = head / queries_per_kv * head_dim;
        const auto part = [&](auto matrix, Index first) {
          return matrix.row_range(begin, length).col_range(first, head_dim);
        };
        if (format == Format::exact) {
          attend<T, true>(part(q, column), part(k, kv_column), part(v, kv_column), rounding, scores, part(out, column));
        } else {
          attend<T, false>(part(q, column), part(k, kv_column), part(v, kv_column), rounding, scores,
                           part(out, column));
        }
      }
    }
  });
}

template void attention(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<float>);
template void attention(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                        std::span<const std::int64_t>, Index, Format, MatrixView<double>);

}  // namespace shardproof::ops
