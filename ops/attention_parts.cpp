#include "ops/attention_parts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/internal/math.h"
#include "ops/internal/parallel.h"
#include "ops/internal/rounding.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// One query of one head, and the keys that it sees.
struct Query {
  Index row, head, kv_head;
  Index first_key, keys;
};

template <class T>
Index value_dim_of(const AttentionOptions<T>& options) {
  return options.value_dim > 0 ? options.value_dim : options.head_dim;
}

template <class T>
void require_shapes(MatrixView<const T> q, MatrixView<const T> k, std::span<const PartSpan> spans,
                    const AttentionOptions<T>& options) {
  constexpr const char* kOp = "attention to a part";
  if (options.head_dim < 1) throw ShapeError(kOp, "head_dim", 1, options.head_dim);
  if (options.window != 0) throw ShapeError(kOp, "window", 0, options.window);
  require_equal(kOp, "sinks", 0, static_cast<Index>(options.sinks.size()));
  require_equal(kOp, "query columns beyond a whole number of heads", 0, q.cols % options.head_dim);
  require_equal(kOp, "key columns beyond a whole number of heads", 0, k.cols % options.head_dim);
  Index rows = 0;
  for (const PartSpan& span : spans) {
    if (span.rows < 0) throw ShapeError(kOp, "rows of a span", 0, span.rows);
    const Index keys = span.keys + (span.causal ? std::max<Index>(span.rows - 1, 0) : 0);
    if (span.keys < 0 || span.first_key < 0 || span.first_key > k.rows || keys > k.rows - span.first_key) {
      throw ShapeError(kOp, "keys from a span's first on", keys, k.rows - span.first_key);
    }
    rows += span.rows;
  }
  require_equal(kOp, "end of the last span", q.rows, rows);
  if (q.size() > 0 && (k.cols == 0 || q.cols % k.cols != 0)) {
    throw ShapeError(kOp, "query heads beyond a multiple of the key heads", 0,
                     k.cols == 0 ? q.cols / options.head_dim : q.cols % k.cols / options.head_dim);
  }
}

template <class T>
void require_values(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                    const AttentionOptions<T>& options, MatrixView<T> out, MatrixView<T> per_head) {
  constexpr const char* kOp = "attention to a part";
  const Index heads = q.cols / options.head_dim, value_dim = value_dim_of(options);
  require_equal(kOp, "columns of the values", k.cols / options.head_dim * value_dim, v.cols);
  require_equal(kOp, "rows of the values", k.rows, v.rows);
  require_equal(kOp, "rows of the output", q.rows, out.rows);
  require_equal(kOp, "columns of the output", heads * value_dim, out.cols);
  require_equal(kOp, "rows of what each head has", q.rows, per_head.rows);
  require_equal(kOp, "columns of what each head has", heads, per_head.cols);
}

/// use(query, scores) for every query of every head; in `exact` the scores are rounded. `scores` may be changed.
template <class T, bool kExact, class Use>
void for_each_query(MatrixView<const T> q, MatrixView<const T> k, std::span<const PartSpan> spans,
                    const AttentionOptions<T>& options, const Use& use) {
  if (q.size() == 0) return;
  const Index dim = options.head_dim, kv_heads = k.cols / dim, group = q.cols / k.cols;
  const T scale = static_cast<T>(options.scale != 0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(dim)));
  std::vector<Index> begins;
  Index rows = 0;
  for (const PartSpan& span : spans) {
    begins.push_back(rows);
    rows += span.rows;
  }
  parallel_for(std::ssize(spans) * kv_heads, 1, [&](Index first, Index last) {
    std::vector<T> scores;
    for (Index part = first; part < last; ++part) {
      const PartSpan& span = spans[static_cast<std::size_t>(part / kv_heads)];
      const Index begin = begins[static_cast<std::size_t>(part / kv_heads)], kv_head = part % kv_heads;
      for (Index t = 0; t < span.rows; ++t) {
        const Index keys = span.keys + (span.causal ? t : 0);
        scores.resize(static_cast<std::size_t>(keys));
        for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          for (Index j = 0; j < keys; ++j) {
            const T dot = simd::sum_of<T>(
                dim, [](auto a, auto b) { return a * b; }, q.row(begin + t).data() + head * dim,
                k.row(span.first_key + j).data() + kv_head * dim);
            scores[static_cast<std::size_t>(j)] = dot * scale;
          }
          if constexpr (kExact) {
            simd::transform<T>(
                keys, scores.data(),
                [](auto s) { return simd::round_to_multiple<T>(s, static_cast<T>(kActivationStep)); }, scores.data());
          }
          use(Query{begin + t, head, kv_head, span.first_key, keys}, scores);
        }
      }
    }
  });
}

/// Turns scores into exponentials and adds up what they weigh into `out`; returns their sum.
template <class T, bool kExact>
T add_values(const Query& query, T largest, MatrixView<const T> v, Index value_dim, std::vector<T>& scores, T* out) {
  simd::transform<T>(
      query.keys, scores.data(), [&](auto s) { return simd::softmax_term<T, kExact>(s - largest); }, scores.data());
  for (Index j = 0; j < query.keys; ++j) {
    const T p = scores[static_cast<std::size_t>(j)];
    simd::transform<T>(
        value_dim, out, [&](auto value, auto total) { return total + p * value; },
        v.row(query.first_key + j).data() + query.kv_head * value_dim, out);
  }
  return simd::sum_of<T>(
      query.keys, [](auto p) { return p; }, scores.data());
}

}  // namespace

template <class T>
void attend_to_part(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                    std::span<const PartSpan> spans, const AttentionOptions<T>& options, Format format,
                    MatrixView<T> out, MatrixView<T> lse) {
  require_shapes(q, k, spans, options);
  require_values(q, k, v, options, out, lse);
  const Index value_dim = value_dim_of(options);
  simd::with_rounding<T>(format, [&](auto rounding) {
    for_each_query<T, false>(q, k, spans, options, [&](const Query& query, std::vector<T>& scores) {
      T* const context = out.row(query.row).data() + query.head * value_dim;
      std::fill_n(context, value_dim, T{0});
      lse(query.row, query.head) = -std::numeric_limits<T>::infinity();
      if (query.keys == 0) return;
      const T largest = simd::largest_of<T>(query.keys, scores.data());
      const T sum = add_values<T, false>(query, largest, v, value_dim, scores, context);
      simd::transform<T>(
          value_dim, context, [&](auto total) { return rounding(total / sum); }, context);
      lse(query.row, query.head) = largest + std::log(sum);
    });
  });
}

template <class T>
void merge_parts(std::span<const AttentionPart<T>> parts, Format format, MatrixView<T> out) {
  Index heads = 0;
  for (const AttentionPart<T>& part : parts) {
    heads = parts.front().lse.cols;
    require_equal("merge of parts", "rows of a part", out.rows, part.out.rows);
    require_equal("merge of parts", "columns of a part", out.cols, part.out.cols);
    require_equal("merge of parts", "rows of a part's sums", out.rows, part.lse.rows);
    require_equal("merge of parts", "columns of a part's sums", heads, part.lse.cols);
  }
  if (heads == 0 || out.cols % heads != 0) {
    if (out.size() > 0) throw ShapeError("merge of parts", "heads", 1, heads);
    return;
  }
  const Index value_dim = out.cols / heads;
  simd::with_rounding<T>(format, [&](auto rounding) {
    parallel_for(out.rows, 16, [&](Index first, Index last) {
      std::vector<T> weights(parts.size());
      for (Index at = first * heads; at < last * heads; ++at) {
        const Index row = at / heads, head = at % heads;
        T* const context = out.row(row).data() + head * value_dim;
        std::fill_n(context, value_dim, T{0});
        for (std::size_t i = 0; i < parts.size(); ++i) weights[i] = parts[i].lse(row, head);
        const T largest = *std::ranges::max_element(weights);
        // No part has a key: minus infinity less itself would be no number.
        if (largest == -std::numeric_limits<T>::infinity()) continue;
        T sum{0};
        for (std::size_t i = 0; i < parts.size(); ++i) {
          weights[i] = parts[i].lse(row, head) == -std::numeric_limits<T>::infinity()
                           ? T{0}
                           : simd::exponential<T>(simd::broadcast<T>(weights[i] - largest))[0];
          sum += weights[i];
          simd::transform<T>(
              value_dim, context, [&](auto value, auto total) { return total + weights[i] * value; },
              parts[i].out.row(row).data() + head * value_dim, context);
        }
        simd::transform<T>(
            value_dim, context, [&](auto total) { return rounding(total / sum); }, context);
      }
    });
  });
}

void raise_maximum(MatrixView<const double> q, MatrixView<const double> k, std::span<const PartSpan> spans,
                   const AttentionOptions<double>& options, MatrixView<double> maximum) {
  require_shapes(q, k, spans, options);
  require_equal("maximum of scores", "rows", q.rows, maximum.rows);
  require_equal("maximum of scores", "heads", q.cols / options.head_dim, maximum.cols);
  for_each_query<double, true>(q, k, spans, options, [&](const Query& query, std::vector<double>& scores) {
    double& largest = maximum(query.row, query.head);
    largest = std::max(largest, simd::largest_of<double>(query.keys, scores.data()));
  });
}

void add_part(MatrixView<const double> q, MatrixView<const double> k, MatrixView<const double> v,
              std::span<const PartSpan> spans, const AttentionOptions<double>& options,
              MatrixView<const double> maximum, MatrixView<double> numerator, MatrixView<double> denominator) {
  require_shapes(q, k, spans, options);
  require_values(q, k, v, options, numerator, denominator);
  const Index value_dim = value_dim_of(options);
  for_each_query<double, true>(q, k, spans, options, [&](const Query& query, std::vector<double>& scores) {
    if (query.keys == 0) return;
    double* const sums = numerator.row(query.row).data() + query.head * value_dim;
    denominator(query.row, query.head) +=
        add_values<double, true>(query, maximum(query.row, query.head), v, value_dim, scores, sums);
  });
}

void divide_parts(MatrixView<const double> numerator, MatrixView<const double> denominator, MatrixView<double> out) {
  require_equal("division of parts", "rows of the output", numerator.rows, out.rows);
  require_equal("division of parts", "columns of the output", numerator.cols, out.cols);
  require_equal("division of parts", "rows of the denominator", numerator.rows, denominator.rows);
  if (out.size() == 0) return;
  const Index value_dim = out.cols / denominator.cols;
  simd::with_rounding<double>(Format::exact, [&](auto rounding) {
    for (Index at = 0; at < out.rows * denominator.cols; ++at) {
      const Index row = at / denominator.cols, head = at % denominator.cols;
      const double sum = denominator(row, head);
      const double* const from = numerator.row(row).data() + head * value_dim;
      double* const to = out.row(row).data() + head * value_dim;
      if (sum == 0) {
        std::fill_n(to, value_dim, 0.0);
        continue;
      }
      simd::transform<double>(
          value_dim, to, [&](auto total) { return rounding(total / sum); }, from);
    }
  });
}

template void attend_to_part(MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                             std::span<const PartSpan>, const AttentionOptions<float>&, Format, MatrixView<float>,
                             MatrixView<float>);
template void attend_to_part(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                             std::span<const PartSpan>, const AttentionOptions<double>&, Format, MatrixView<double>,
                             MatrixView<double>);
template void merge_parts(std::span<const AttentionPart<float>>, Format, MatrixView<float>);
template void merge_parts(std::span<const AttentionPart<double>>, Format, MatrixView<double>);

}  // namespace shardproof::ops
