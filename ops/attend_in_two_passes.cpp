#include <algorithm>
#include <vector>

#include "ops/internal/attend.h"
#include "ops/internal/math.h"

namespace shardproof::ops {

namespace {

template <class T, bool kExact, class Rounding>
void attend(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past, const HeadOptions<T>& options,
            const T* sink, Rounding rounding, std::vector<T>& scores, MatrixView<T> out) {
  for (Index t = 0; t < q.rows; ++t) {
    const Index seen = past + t + 1, first = std::max<Index>(0, seen - options.window), keys = seen - first;
    for (Index j = 0; j < keys; ++j) {
      const T dot = simd::sum_of<T>(
          q.cols, [](auto a, auto b) { return a * b; }, q.row(t).data(), k.row(first + j));
      scores[static_cast<std::size_t>(j)] = dot * options.scale;
    }
    if constexpr (kExact) {
      simd::transform<T>(
          keys, scores.data(), [](auto s) { return simd::round_to_multiple<T>(s, static_cast<T>(kActivationStep)); },
          scores.data());
    }
    T largest = simd::largest_of<T>(keys, scores.data());
    if (sink != nullptr) largest = std::max(largest, *sink);
    simd::transform<T>(
        keys, scores.data(), [&](auto s) { return simd::softmax_term<T, kExact>(s - largest); }, scores.data());
    T sum = simd::sum_of<T>(
        keys, [](auto p) { return p; }, scores.data());
    if (sink != nullptr) sum += simd::softmax_term<T, kExact>(simd::broadcast<T>(*sink - largest))[0];
    T* context = out.row(t).data();
    std::fill_n(context, out.cols, T{0});
    for (Index j = 0; j < keys; ++j) {
      const T p = scores[static_cast<std::size_t>(j)];
      simd::transform<T>(
          out.cols, context, [&](auto value, auto total) { return total + p * value; }, v.row(first + j), context);
    }
    simd::transform<T>(
        out.cols, context, [&](auto total) { return rounding(total / sum); }, context);
  }
}

}  // namespace

template <class T>
void attend_in_two_passes(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past,
                          const HeadOptions<T>& options, Format format, MatrixView<T> out) {
  std::vector<T> scores(static_cast<std::size_t>(past + q.rows));
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index head = 0; head < q.cols / k.cols(); ++head) {
      const auto query = q.col_range(head * k.cols(), k.cols());
      const auto context = out.col_range(head * v.cols(), v.cols());
      const T* const sink = options.sinks == nullptr ? nullptr : options.sinks + head;
      if (format == Format::exact) {
        attend<T, true>(query, k, v, past, options, sink, rounding, scores, context);
      } else {
        attend<T, false>(query, k, v, past, options, sink, rounding, scores, context);
      }
    }
  });
}

template void attend_in_two_passes(MatrixView<const float>, TokenRowsOf<float>, TokenRowsOf<float>, Index,
                                   const HeadOptions<float>&, Format, MatrixView<float>);
template void attend_in_two_passes(MatrixView<const double>, TokenRowsOf<double>, TokenRowsOf<double>, Index,
                                   const HeadOptions<double>&, Format, MatrixView<double>);

}  // namespace shardproof::ops
