#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/attention.h"
#include "ops/attention_parts.h"
#include "ops/latent.h"
#include "tools/prepare.h"

namespace shardproof::tools::prepare {
namespace {

template <class T>
struct Heads {
  Matrix<T> q, k, v, sinks, y;
  OpShape shape;
  Matrix<T> lse, denominator = {};  // of a part
};

/// The keys that a row sees.
struct Seen {
  Index first = 0, count = 0;
};

Seen seen_by(const OpShape& shape, Index row) {
  for (const KeySpan& span : shape.spans) {
    if (row >= span.queries) {
      row -= span.queries;
      continue;
    }
    const Index keys = span.keys + (span.causal ? row : 0);
    const Index hidden = shape.window > 0 ? std::max<Index>(0, keys - shape.window) : 0;
    return {span.first_key + hidden, keys - hidden};
  }
  return {};
}

template <class T>
Expected attended(const Heads<T>& a, Index row, Index col, Format format) {
  const OpShape& s = a.shape;
  const Index head = col / s.value_dim, kv = head * s.kv_heads / std::max<Index>(1, s.heads());
  const auto part = [](const Matrix<T>& m, Index r, Index h, Index width) {
    return m.row(r).subspan(static_cast<std::size_t>(h * width), static_cast<std::size_t>(width));
  };
  const Seen seen = seen_by(s, row);
  if (seen.count == 0) return {0, 0};
  const double scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
  std::vector<double> scores;
  double score_error = 0, sum = 0, out = 0, magnitude = 0;
  double largest = s.sinks ? static_cast<double>(a.sinks(0, head)) : -std::numeric_limits<double>::infinity();
  for (Index j = seen.first; j < seen.first + seen.count; ++j) {
    const Expected score = dot<T>(part(a.q, row, head, s.head_dim), part(a.k, j, kv, s.head_dim));
    scores.push_back(score.value * scale);
    score_error = std::max(score_error, score.bound * scale + 4 * unit<T>() * std::abs(score.value * scale) +
                                            (format == Format::exact ? ops::kActivationStep / 2 : 0));
    largest = std::max(largest, scores.back());
  }
  if (s.sinks) sum += std::exp(static_cast<double>(a.sinks(0, head)) - largest);
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const double p = std::exp(scores[j] - largest);
    // A latent's key begins with its value.
    const Matrix<T>& values = s.kernel == Kernel::latent_attention ? a.k : a.v;
    const auto v =
        static_cast<double>(values(seen.first + static_cast<Index>(j), kv * s.value_dim + col % s.value_dim));
    sum += p;
    out += p * v;
    magnitude += p * std::abs(v);
  }
  // Every p is off by a factor within e^(+-2 score_error), and in `exact` by half a step; both sums, the quotient and
  // the scaling of each tile's maximum round.
  const auto keys = static_cast<double>(scores.size() + 1);
  const double factor = std::exp(4 * score_error) - 1 + 2 * gamma<T>(keys + 16);
  const double steps = format == Format::exact ? keys * ops::kExpStep : 0;
  return stored<T>(out / sum, factor * 2 * magnitude / sum + 2 * steps / sum, format);
}

template <class T>
Heads<T> heads_of(const OpShape& s, Format format) {
  return {filled<T>(s.rows, s.heads() * s.head_dim, 1, format),
          filled<T>(s.keys, s.kv_heads * s.head_dim, 2, format),
          filled<T>(s.keys, s.kv_heads * s.value_dim, 3, format),
          filled<T>(s.sinks ? 1 : 0, s.heads(), 4, format),
          {s.rows, s.cols},
          s,
          {s.rows, s.heads()},
          {}};
}

template <class T>
void run_part(Heads<T>& a, Format format) {
  std::vector<ops::PartSpan> spans;
  for (const KeySpan& span : a.shape.spans) {
    spans.push_back({.rows = span.queries, .first_key = span.first_key, .keys = span.keys, .causal = span.causal});
  }
  const ops::AttentionOptions<T> options{.head_dim = a.shape.head_dim, .value_dim = a.shape.value_dim};
  if (format != Format::exact) return ops::attend_to_part<T>(a.q, a.k, a.v, spans, options, format, a.y, a.lse);
  if constexpr (std::is_same_v<T, double>) {
    a.denominator = Matrix<T>::zeros(a.lse.rows(), a.lse.cols());
    std::ranges::fill(a.lse.span(), -std::numeric_limits<T>::infinity());
    std::ranges::fill(a.y.span(), 0.0);
    ops::raise_maximum(a.q, a.k, spans, options, a.lse);
    ops::add_part(a.q, a.k, a.v, spans, options, a.lse, a.y, a.denominator);
    ops::divide_parts(a.y, a.denominator, a.y);
  }
}

}  // namespace

template <class T>
PreparedOp attention(const OpShape& s, Format format) {
  return made(
      heads_of<T>(s, format), 4, 4,
      [format](Heads<T>& a) {
        std::vector<ops::AttentionSpan> spans;
        for (const KeySpan& span : a.shape.spans) {
          spans.push_back({.rows = span.queries, .past = span.keys - 1, .first_key = span.first_key});
        }
        ops::AttentionOptions<T> options{
            .head_dim = a.shape.head_dim, .value_dim = a.shape.value_dim, .window = a.shape.window};
        if (a.shape.sinks) options.sinks = std::as_const(a.sinks).row(0);
        ops::attention<T>(a.q, a.k, a.v, spans, 0, options, format, a.y);
      },
      [format](const Heads<T>& a, Index row, Index col) { return attended(a, row, col, format); });
}

template <class T>
PreparedOp attention_part(const OpShape& s, Format format) {
  return made(
      heads_of<T>(s, format), 4, 4, [format](Heads<T>& a) { run_part(a, format); },
      [format](const Heads<T>& a, Index row, Index col) { return attended(a, row, col, format); });
}

namespace {

template <class T>
struct Parts {
  std::vector<Matrix<T>> out, lse;
  Matrix<T> y, denominator;
  Index value_dim = 0;
};

/// In `exact` the parts are numerators, and what takes the place of lse the denominators.
template <class T>
void run_merge(Parts<T>& a, Format format) {
  if (format != Format::exact) {
    std::vector<ops::AttentionPart<T>> views;
    for (std::size_t i = 0; i < a.out.size(); ++i) {
      views.push_back({std::as_const(a.out[i]).view(), std::as_const(a.lse[i]).view()});
    }
    return ops::merge_parts<T>(views, format, a.y);
  }
  if constexpr (std::is_same_v<T, double>) {
    std::ranges::fill(a.y.span(), 0.0);
    std::ranges::fill(a.denominator.span(), 0.0);
    for (std::size_t i = 0; i < a.out.size(); ++i) {
      std::ranges::transform(a.y.span(), a.out[i].span(), a.y.span().begin(), std::plus<>());
      std::ranges::transform(a.denominator.span(), a.lse[i].span(), a.denominator.span().begin(), std::plus<>());
    }
    ops::divide_parts(a.y, a.denominator, a.y);
  }
}

template <class T>
Expected merged(const Parts<T>& a, Index row, Index col, Format format) {
  double sum = 0, weights = 0, magnitude = 0, largest = -std::numeric_limits<double>::infinity();
  const Index head = col / a.value_dim;
  for (const Matrix<T>& lse : a.lse) largest = std::max(largest, static_cast<double>(lse(row, head)));
  for (std::size_t i = 0; i < a.out.size(); ++i) {
    const auto lse = static_cast<double>(a.lse[i](row, head)), out = static_cast<double>(a.out[i](row, col));
    const double weight = format == Format::exact ? lse : std::exp(lse - largest);
    sum += format == Format::exact ? out : weight * out;
    weights += weight;
    magnitude += std::abs(weight * out);
  }
  const double error = gamma<T>(2 * static_cast<double>(a.out.size()) + 24) * magnitude / weights;
  return stored<T>(sum / weights, format == Format::exact ? 4 * unit<T>() * std::abs(sum / weights) : error, format);
}

}  // namespace

template <class T>
PreparedOp merge_parts(const OpShape& s, Format format) {
  Parts<T> parts{
      .out = {}, .lse = {}, .y = {s.rows, s.cols}, .denominator = {s.rows, s.heads()}, .value_dim = s.value_dim};
  for (Index i = 0; i < s.inner; ++i) {
    parts.out.push_back(filled<T>(s.rows, s.cols, static_cast<std::uint32_t>(2 * i + 1), format));
    parts.lse.push_back(filled<T>(s.rows, s.heads(), static_cast<std::uint32_t>(2 * i + 2), format));
    // Denominators are above 0.
    if (format == Format::exact) std::ranges::for_each(parts.lse.back().span(), [](T& value) { value += T{2}; });
  }
  return made(
      std::move(parts), 4, 16, [format](Parts<T>& a) { run_merge(a, format); },
      [format](const Parts<T>& a, Index row, Index col) { return merged(a, row, col, format); });
}

namespace {

template <class T>
struct LatentHeads {
  Matrix<T> product, shared, y, v;
  Index still = 0, turned = 0, value_dim = 0;
};

}  // namespace

/// y is the keys.
template <class T>
PreparedOp split_heads(const OpShape& s, Format format) {
  const Index still = s.head_dim - s.inner;
  LatentHeads<T> heads{filled<T>(s.rows, s.kv_heads * (still + s.value_dim), 1, format),
                       filled<T>(s.rows, s.inner, 2, format),
                       {s.rows, s.kv_heads * s.head_dim},
                       {s.rows, s.kv_heads * s.value_dim},
                       still,
                       s.inner,
                       s.value_dim};
  return made(
      std::move(heads), 4, 16,
      [](LatentHeads<T>& a) { ops::split_latent_heads<T>(a.product, a.shared, a.value_dim, a.y, a.v); },
      [](const LatentHeads<T>& a, Index row, Index col) {
        const Index head = col / (a.still + a.turned), place = col % (a.still + a.turned);
        const T value =
            place < a.still ? a.product(row, head * (a.still + a.value_dim) + place) : a.shared(row, place - a.still);
        return Expected{static_cast<double>(value), 0};
      });
}

/// Every head's keys are the latents; their scale is that of their width.
template <class T>
PreparedOp latent_attention(const OpShape& s, Format format) {
  OpShape without_values = s;
  without_values.kv_heads = 0;
  Heads<T> heads = heads_of<T>(without_values, format);
  heads.k = filled<T>(s.keys, s.head_dim, 2, format);
  heads.shape = s;
  return made(
      std::move(heads), 4, 4,
      [format](Heads<T>& a) {
        std::vector<ops::AttentionSpan> spans;
        for (const KeySpan& span : a.shape.spans) {
          spans.push_back({.rows = span.queries, .past = span.keys - 1, .first_key = span.first_key});
        }
        const ops::LatentHead head{.turned = a.shape.head_dim - a.shape.value_dim, .value_dim = a.shape.value_dim};
        ops::attend_to_latents<T>(a.q, a.k, spans, 0, head, 1 / std::sqrt(static_cast<double>(a.shape.head_dim)),
                                  format, a.y);
      },
      [format](const Heads<T>& a, Index row, Index col) { return attended(a, row, col, format); });
}

namespace {

template <class T>
struct Absorbed {
  Matrix<T> x, weight, y;
  ops::LatentHead head;
  Index rank = 0;
};

template <class T>
Absorbed<T> absorbed(const OpShape& s, Index of_head, Format format) {
  const ops::LatentHead head = latent_head_of(s);
  return {filled<T>(s.rows, s.kv_heads * of_head, 1, format),
          filled<T>(s.kv_heads * (head.still + head.value_dim), s.inner, 2, format),
          {s.rows, s.cols},
          head,
          s.inner};
}

template <class T>
Expected absorbed_query(const Absorbed<T>& a, Index row, Index col, Format format) {
  const Index width = a.rank + a.head.turned, head = col / width, place = col % width;
  const auto query = a.x.row(row).subspan(static_cast<std::size_t>(head * a.head.key_dim()),
                                          static_cast<std::size_t>(a.head.key_dim()));
  const auto still = static_cast<std::size_t>(a.head.still);
  if (place >= a.rank) return {static_cast<double>(query[still + static_cast<std::size_t>(place - a.rank)]), 0};
  std::vector<T> column;
  for (Index i = 0; i < a.head.still; ++i) {
    column.push_back(a.weight(head * (a.head.still + a.head.value_dim) + i, place));
  }
  const Expected sum = dot<T>(query.first(still), std::span<const T>(column));
  return stored<T>(sum.value, sum.bound, format);
}

template <class T>
Expected expanded_context(const Absorbed<T>& a, Index row, Index col, Format format) {
  const Index head = col / a.head.value_dim, both = a.head.still + a.head.value_dim;
  const auto latents = a.x.row(row).subspan(static_cast<std::size_t>(head * a.rank), static_cast<std::size_t>(a.rank));
  const Expected sum = dot<T>(latents, a.weight.row(head * both + a.head.still + col % a.head.value_dim));
  return stored<T>(sum.value, sum.bound, format);
}

}  // namespace

/// As the program stores it.
template <class T>
PreparedOp absorb_queries(const OpShape& s, Format format) {
  return made(
      absorbed<T>(s, s.head_dim, format), 4, 16,
      [format](Absorbed<T>& a) {
        ops::absorb_queries<T>(a.x, a.weight, a.head, a.y);
        ops::round_to<T>(a.y.span(), format);
      },
      [format](const Absorbed<T>& a, Index row, Index col) { return absorbed_query(a, row, col, format); });
}

template <class T>
PreparedOp expand_context(const OpShape& s, Format format) {
  return made(
      absorbed<T>(s, s.inner, format), 4, 16,
      [format](Absorbed<T>& a) {
        ops::expand_context<T>(a.x, a.weight, a.head, a.y);
        ops::round_to<T>(a.y.span(), format);
      },
      [format](const Absorbed<T>& a, Index row, Index col) { return expanded_context(a, row, col, format); });
}

template PreparedOp attention<float>(const OpShape&, Format);
template PreparedOp attention<double>(const OpShape&, Format);
template PreparedOp attention_part<float>(const OpShape&, Format);
template PreparedOp attention_part<double>(const OpShape&, Format);
template PreparedOp merge_parts<float>(const OpShape&, Format);
template PreparedOp merge_parts<double>(const OpShape&, Format);
template PreparedOp split_heads<float>(const OpShape&, Format);
template PreparedOp split_heads<double>(const OpShape&, Format);
template PreparedOp absorb_queries<float>(const OpShape&, Format);
template PreparedOp absorb_queries<double>(const OpShape&, Format);
template PreparedOp latent_attention<float>(const OpShape&, Format);
template PreparedOp latent_attention<double>(const OpShape&, Format);
template PreparedOp expand_context<float>(const OpShape&, Format);
template PreparedOp expand_context<double>(const OpShape&, Format);

}  // namespace shardproof::tools::prepare
