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
RowOrder Computations<T>::order_over(Range ranks) const {
  struct Held {
    Chunk piece;
    std::int64_t from = 0;  ///< its first row
  };
  RowOrder order;
  std::vector<Held> held;
  for (std::int64_t rank = ranks.begin; rank < ranks.end(); ++rank) {
    for (const Chunk& piece : tokens_.shares[static_cast<std::size_t>(rank)]) {
      held.push_back({piece, order.count});
      order.count += piece.count;
    }
  }
  if constexpr (!kDry) {
    std::ranges::stable_sort(held, {}, [](const Held& at) { return std::pair(at.piece.sequence, at.piece.begin); });
    for (const Held& at : held) {
      for (std::int64_t i = 0; i < at.piece.count; ++i) order.rows.push_back(at.from + i);
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

inline std::vector<ops::PartSpan> part_spans(const std::vector<Chunk>& queries, const std::vector<Chunk>& held) {
  std::vector<ops::PartSpan> spans;
  for (const KeySpan& span : key_spans(queries, held)) {
    spans.push_back({.rows = span.queries, .first_key = span.first_key, .keys = span.keys, .causal = span.causal});
  }
  return spans;
}

}  // namespace ring

template <class T>
std::int64_t Computations<T>::rows_of_member(int member) const {
  std::int64_t count = 0;
  for (const Chunk& piece : tokens_.of_member(member, parallel().heads_dealt())) count += piece.count;
  return count;
}

template <class T>
void Computations<T>::tap_of_member([[maybe_unused]] TapKind kind, [[maybe_unused]] int layer,
                                    [[maybe_unused]] int part, [[maybe_unused]] const Tensor& tensor) const {
  if constexpr (!kDry) {
    const int dealt = parallel().heads_dealt();
    if (dealt == 1) return tap_part(kind, layer, part, tensor);
    if (!ground_.rank.tapped_inside()) return;
    const TapId id{.layer = layer, .kind = kind, .part = part};
    const std::int64_t width = tap_width(model_, id);
    Range cols = part_of(layout_, model_, tap_row(kind).cols, layer, width);
    cols = {cols.begin + layout_.at.cp % dealt * tensor.cols(), tensor.cols()};
    const TokenMap& all = ground_.program.deployment.tokens;
    std::vector<std::int64_t> rows;
    for (const Chunk& piece : own_member()) {
      for (std::int64_t i = 0; i < piece.count; ++i) {
        rows.push_back(all.first_row_of(piece.sequence) + piece.begin + i);
      }
    }
    if (rows.empty()) return;
    ground_.rank.template tap<T>(id, tensor, Placement::listed(all.tokens(), width, rows, cols));
  }
}

template <class T>
void Computations<T>::keep_part(Tensor held_part, RingParts& parts) const {
  if (format_ == ops::Format::exact) parts.held.push_back(std::move(held_part));
}

template <class T>
void Computations<T>::attend_to_part(Op op, int layer, [[maybe_unused]] const Tensor& q, const Tensor& held_part,
                                     int keys_of, RingParts& parts) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t dealt = parallel().heads_dealt(), heads = held(layer).heads.count / dealt;
  const std::int64_t k_cols = held(layer).kv_heads.count / dealt * spec.head_dim;
  [[maybe_unused]] const std::int64_t v_cols = held_part.cols() - k_cols;
  parts.keys_of.push_back(keys_of);
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const std::vector<ops::PartSpan> spans =
        ring::part_spans(own_member(), tokens_.of_member(keys_of, static_cast<int>(dealt)));
    const ops::MatrixView<const T> k = held_part.view().col_range(0, k_cols);
    if (format_ == ops::Format::exact) {
      if constexpr (std::is_same_v<T, double>) {
        if (parts.keys_of.size() == 1) {
          parts.maximum = Tensor(q.rows(), heads);
          std::ranges::fill(parts.maximum.span(), -std::numeric_limits<T>::infinity());
        }
        ops::raise_maximum(q, k, spans, attention_options(layer), parts.maximum);
      }
    } else {
      Tensor context(q.rows(), heads * spec.value_dim()), lse(q.rows(), heads);
      ops::attend_to_part<T>(q, k, held_part.view().col_range(k_cols, v_cols), spans, attention_options(layer), format_,
                             context, lse);
      tap_of_member(TapKind::attention_ring_context, layer, keys_of, context);
      tap_of_member(TapKind::attention_ring_lse, layer, keys_of, lse);
      inject_part_fault(layer, keys_of, context, lse);
      parts.context.push_back(std::move(context));
      parts.lse.push_back(std::move(lse));
    }
  }
  ops::Cost cost = ops::attention_cost(tokens_.pairs_of_part(keys_of, static_cast<int>(dealt)), q.rows(), heads, 0,
                                       spec.head_dim, spec.value_dim(), element_bytes());
  cost.bytes += static_cast<double>(held_part.size()) * element_bytes();
  record(op, layer, q.rows(), heads * spec.value_dim(), cost);
}

template <class T>
typename Computations<T>::Tensor Computations<T>::merge_exact_parts([[maybe_unused]] int layer,
                                                                    [[maybe_unused]] const Tensor& q,
                                                                    [[maybe_unused]] const RingParts& parts) const {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t dealt = parallel().heads_dealt(), heads = held(layer).heads.count / dealt;
  Tensor context(q.rows(), heads * spec.value_dim());
  if constexpr (std::is_same_v<T, double>) {
    const std::int64_t k_cols = held(layer).kv_heads.count / dealt * spec.head_dim;
    Tensor numerator = Tensor::zeros(q.rows(), context.cols()), denominator = Tensor::zeros(q.rows(), heads);
    for (std::size_t i = 0; i < parts.held.size(); ++i) {
      const ops::MatrixView<const T> both = parts.held[i].view();
      Tensor sums = Tensor::zeros(q.rows(), context.cols()), weights = Tensor::zeros(q.rows(), heads);
      ops::add_part(q, both.col_range(0, k_cols), both.col_range(k_cols, both.cols - k_cols),
                    ring::part_spans(own_member(), tokens_.of_member(parts.keys_of[i], static_cast<int>(dealt))),
                    attention_options(layer), parts.maximum, sums, weights);
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
  const std::int64_t heads = held(layer).heads.count / parallel().heads_dealt();
  Tensor context(q.rows(), heads * spec.value_dim());
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
