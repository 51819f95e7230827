// Of Computations (computations.h), what context parallelism adds to attention; included by computations.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "emu/plan/key_spans.h"
#include "emu/run/computations.h"
#include "emu/run/fault.h"
#include "emu/run/transformer.h"
#include "ops/attention_parts.h"
#include "ops/threads.h"

namespace shardproof {

template <class T>
RowOrder Computations<T>::order_over_cp() const {
  RowOrder order;
  std::vector<std::int64_t> begins;  // of each chunk among all rows
  for (const Chunk& chunk : tokens_.chunks) {
    begins.push_back(order.count);
    order.count += chunk.count;
  }
  if constexpr (!kDry) {
    order.rows.resize(static_cast<std::size_t>(order.count));
    std::int64_t from = 0;
    for (const std::vector<Chunk>& share : tokens_.shares) {
      std::size_t at = 0;
      for (const Chunk& piece : share) {
        while (tokens_.chunks[at].sequence != piece.sequence) ++at;
        const std::int64_t to = begins[at] + piece.begin - tokens_.chunks[at].begin;
        for (std::int64_t i = 0; i < piece.count; ++i) order.rows[static_cast<std::size_t>(to + i)] = from++;
      }
    }
  }
  return order;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::split_columns(Op op, int layer, const Tensor& x, int parts) {
  const std::int64_t width = x.cols() / parts;
  Tensor y(x.rows() * parts, width);
  if constexpr (!kDry) {
    for (std::int64_t i = 0; i < y.rows(); ++i) {
      std::ranges::copy(x.view().col_range(i / x.rows() * width, width).row(i % x.rows()), y.row(i).begin());
    }
  }
  record(op, layer, y.rows(), y.cols(), {0, 2.0 * static_cast<double>(y.size()) * element_bytes()});
  return y;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::join_columns(Op op, int layer, const Tensor& x, int parts) {
  const std::int64_t count = x.rows() / parts;
  Tensor y(count, x.cols() * parts);
  if constexpr (!kDry) {
    for (std::int64_t i = 0; i < x.rows(); ++i) {
      std::ranges::copy(x.row(i), y.row(i % count).begin() + i / count * x.cols());
    }
  }
  record(op, layer, y.rows(), y.cols(), {0, 2.0 * static_cast<double>(y.size()) * element_bytes()});
  return y;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::beside(const Tensor& k, const Tensor& v) const {
  Tensor both(k.rows(), k.cols() + v.cols());
  if constexpr (!kDry) {
    for (std::int64_t i = 0; i < k.rows(); ++i) {
      std::ranges::copy(v.row(i), std::ranges::copy(k.row(i), both.row(i).begin()).out);
    }
  }
  return both;
}

template <class T>
std::vector<ops::AttentionSpan> Computations<T>::spans_over_cp() const {
  std::vector<ops::AttentionSpan> spans;
  const bool all_rows = parallel().cp_comm == CpComm::a2a;
  std::int64_t first = 0;
  auto piece = tokens_.pieces.begin();
  for (const Chunk& chunk : tokens_.chunks) {
    if (all_rows) spans.push_back({.rows = chunk.count, .past = chunk.begin, .first_key = first});
    for (; piece != tokens_.pieces.end() && piece->sequence == chunk.sequence; ++piece) {
      if (!all_rows) spans.push_back({.rows = piece->count, .past = piece->begin, .first_key = first});
    }
    first += chunk.count;
  }
  return spans;
}

namespace ring {

inline std::vector<ops::PartSpan> part_spans(const RankTokens& tokens, int keys_of) {
  std::vector<ops::PartSpan> spans;
  for (const KeySpan& span : key_spans(tokens.pieces, tokens.shares[static_cast<std::size_t>(keys_of)])) {
    spans.push_back({.rows = span.queries, .first_key = span.first_key, .keys = span.keys, .causal = span.causal});
  }
  return spans;
}

}  // namespace ring

template <class T>
std::int64_t Computations<T>::rows_of_cp_rank(int cp) const {
  std::int64_t count = 0;
  for (const Chunk& piece : tokens_.shares[static_cast<std::size_t>(cp)]) count += piece.count;
  return count;
}

template <class T>
void Computations<T>::keep_part(Tensor held_part, RingParts& parts) const {
  if (format_ == ops::Format::exact) parts.held.push_back(std::move(held_part));
}

template <class T>
void Computations<T>::attend_to_part(Op op, int layer, [[maybe_unused]] const Tensor& q, const Tensor& held_part,
                                     int keys_of, RingParts& parts) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count, k_cols = held(layer).kv_heads.count * spec.head_dim;
  const std::int64_t v_cols = held_part.cols() - k_cols;
  parts.keys_of.push_back(keys_of);
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const std::vector<ops::PartSpan> spans = ring::part_spans(tokens_, keys_of);
    const ops::MatrixView<const T> k = held_part.view().col_range(0, k_cols);
    if (format_ == ops::Format::exact) {
      if constexpr (std::is_same_v<T, double>) {
        if (parts.keys_of.size() == 1) {
          parts.maximum = Tensor(rows(), heads);
          std::ranges::fill(parts.maximum.span(), -std::numeric_limits<T>::infinity());
        }
        ops::raise_maximum(q, k, spans, attention_options(layer), parts.maximum);
      }
    } else {
      Tensor context(rows(), heads * spec.value_dim()), lse(rows(), heads);
      ops::attend_to_part<T>(q, k, held_part.view().col_range(k_cols, v_cols), spans, attention_options(layer), format_,
                             context, lse);
      tap_part(TapKind::attention_ring_context, layer, keys_of, context);
      tap_part(TapKind::attention_ring_lse, layer, keys_of, lse);
      inject_part_fault(layer, keys_of, context, lse);
      parts.context.push_back(std::move(context));
      parts.lse.push_back(std::move(lse));
    }
  }
  ops::Cost cost = ops::attention_cost(tokens_.pairs_of_part(keys_of), rows(), heads, 0, spec.head_dim,
                                       spec.value_dim(), element_bytes());
  cost.bytes += static_cast<double>(held_part.rows() * (k_cols + v_cols)) * element_bytes();
  record(op, layer, rows(), heads * spec.value_dim(), cost);
}

template <class T>
typename Computations<T>::Tensor Computations<T>::merge_exact_parts([[maybe_unused]] int layer,
                                                                    [[maybe_unused]] const Tensor& q,
                                                                    [[maybe_unused]] const RingParts& parts) const {
  const AttentionSpec& spec = model_.layers[layer].attention;
  Tensor context(rows(), held(layer).heads.count * spec.value_dim());
  if constexpr (std::is_same_v<T, double>) {
    const std::int64_t heads = held(layer).heads.count, k_cols = held(layer).kv_heads.count * spec.head_dim;
    Tensor numerator = Tensor::zeros(rows(), context.cols()), denominator = Tensor::zeros(rows(), heads);
    for (std::size_t i = 0; i < parts.held.size(); ++i) {
      const ops::MatrixView<const T> both = parts.held[i].view();
      Tensor sums = Tensor::zeros(rows(), context.cols()), weights = Tensor::zeros(rows(), heads);
      ops::add_part(q, both.col_range(0, k_cols), both.col_range(k_cols, both.cols - k_cols),
                    ring::part_spans(tokens_, parts.keys_of[i]), attention_options(layer), parts.maximum, sums,
                    weights);
      inject_part_fault(layer, parts.keys_of[i], sums, weights);
      std::ranges::transform(numerator.span(), sums.span(), numerator.span().begin(), std::plus<>());
      std::ranges::transform(denominator.span(), weights.span(), denominator.span().begin(), std::plus<>());
    }
    ops::divide_parts(numerator, denominator, context);
  }
  return context;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::merge_parts(Op op, int layer, [[maybe_unused]] const Tensor& q,
                                                              const RingParts& parts) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count;
  Tensor context(rows(), heads * spec.value_dim());
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    if (format_ == ops::Format::exact) {
      context = merge_exact_parts(layer, q, parts);
    } else {
      std::vector<ops::AttentionPart<T>> views;
      for (std::size_t i = 0; i < parts.context.size(); ++i) {
        views.push_back({std::as_const(parts.context[i]).view(), std::as_const(parts.lse[i]).view()});
      }
      ops::merge_parts<T>(views, format_, context);
    }
    inject_result_fault(op, layer, context.view());
  }
  record(op, layer, context.rows(), context.cols(),
         ops::merge_parts_cost(std::ssize(parts.keys_of), context.rows(), heads, spec.value_dim(), element_bytes()));
  return context;
}

template <class T>
void Computations<T>::inject_part_fault([[maybe_unused]] int layer, [[maybe_unused]] int keys_of,
                                        [[maybe_unused]] Tensor& context, [[maybe_unused]] Tensor& lse) const {
  if constexpr (!kDry) {
    if (ground_.program.fault == nullptr) return;
    const FaultSite site{.layer = layer, .microbatch = microbatch_};
    if constexpr (std::is_same_v<T, float>) {
      ground_.program.fault->edit_part(ground_.rank, site, keys_of, context, lse);
    } else {
      ground_.program.fault->edit_double_part(ground_.rank, site, keys_of, context, lse);
    }
  }
}

}  // namespace shardproof
