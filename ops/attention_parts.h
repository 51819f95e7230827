// Attention to some of the keys at a time, and what becomes of it together: keys that other ranks hold come in parts.
//
// In the float formats a part gives, with s_j = (q . k_j) * scale over the keys of the part that the query sees,
//   m = max s_j,  out = (sum exp(s_j - m) v_j) / sum exp(s_j - m),  lse = m + log sum exp(s_j - m),
// out stored, lse kept as computed; of no key, out = 0 and lse = -infinity. Parts i are merged (Liu et al. 2023, Ring
// Attention, arXiv 2310.01889; TransformerEngine) as
//   m = max lse_i,  w_i = exp(lse_i - m), 0 where lse_i = -infinity,  (sum w_i out_i) / sum w_i,
// stored; the sums go in the order in which the parts are given, and a query that sees no key at all gives 0.
//
// In `exact` that would round where the whole does not: there the maximum over all keys is taken first (in any order),
// numerators and denominators of the parts are added, which is exact, and divided last. The result has the very bits of
// attention() over all keys.
#pragma once

#include <span>

#include "ops/attention.h"

namespace shardproof::ops {

/// `rows` queries, after those of the spans before, and the keys that they see: the first of those that begin at row
/// first_key of k and v.
struct PartSpan {
  Index rows = 0;
  Index first_key = 0;
  Index keys = 0;       ///< that the first query sees; maybe none
  bool causal = false;  ///< each further query sees one more
};

/// q, out as for attention(), of all spans; lse [rows, heads]. Of the options, window and sinks must be none. Throws
/// ShapeError where a span reaches outside.
template <class T>
void attend_to_part(MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                    std::span<const PartSpan> spans, const AttentionOptions<T>& options, Format format,
                    MatrixView<T> out, MatrixView<T> lse);

template <class T>
struct AttentionPart {
  MatrixView<const T> out;
  MatrixView<const T> lse;
};
/// out [rows, heads * value_dim] of parts of that shape.
template <class T>
void merge_parts(std::span<const AttentionPart<T>> parts, Format format, MatrixView<T> out);

/// In `exact`: raises maximum [rows, heads] to the largest score of the part.
void raise_maximum(MatrixView<const double> q, MatrixView<const double> k, std::span<const PartSpan> spans,
                   const AttentionOptions<double>& options, MatrixView<double> maximum);
/// In `exact`: adds sum exp(s_j - maximum) v_j to numerator [rows, heads * value_dim] and sum exp(s_j - maximum) to
/// denominator [rows, heads].
void add_part(MatrixView<const double> q, MatrixView<const double> k, MatrixView<const double> v,
              std::span<const PartSpan> spans, const AttentionOptions<double>& options,
              MatrixView<const double> maximum, MatrixView<double> numerator, MatrixView<double> denominator);
/// In `exact`: numerator / denominator, stored; 0 where the denominator is.
void divide_parts(MatrixView<const double> numerator, MatrixView<const double> denominator, MatrixView<double> out);

/// Of `parts` parts, a product and a sum an element of each, and the exponentials; every part and the result once.
constexpr Cost merge_parts_cost(Index parts, Index rows, Index heads, Index value_dim, int bytes_per_element) {
  const auto elements = static_cast<double>(rows) * static_cast<double>(heads * value_dim);
  const auto count = static_cast<double>(parts);
  return {2 * count * elements, (count + 1) * elements * bytes_per_element};
}

}  // namespace shardproof::ops
