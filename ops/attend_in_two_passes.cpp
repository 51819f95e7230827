#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/internal/attend.h"
#include "ops/internal/math.h"

namespace shardproof::ops {

namespace {

template <class T, bool kExact, class Rounding>
void attend(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v, Rounding rounding,
            std::vector<T>& scores, MatrixView<T> out) {
  const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(q.cols)));
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
void attend_in_two_passes(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v, Format format,
                          MatrixView<T> out) {
  std::vector<T> scores(static_cast<std::size_t>(q.rows));
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index head = 0; head < q.cols; head += k.cols) {
      const auto query = q.col_range(head, k.cols);
      const auto context = out.col_range(head, k.cols);
      if (format == Format::exact) {
        attend<T, true>(query, k, v, rounding, scores, context);
      } else {
        attend<T, false>(query, k, v, rounding, scores, context);
      }
    }
  });
}

template void attend_in_two_passes(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>, Format,
                                   MatrixView<float>);
template void attend_in_two_passes(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>, Format,
                                   MatrixView<double>);

}  // namespace shardproof::ops
