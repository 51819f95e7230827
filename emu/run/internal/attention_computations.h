// Of Computations (computations.h), what attention is made of; included by computations.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "emu/run/computations.h"
#include "emu/run/fault.h"
#include "emu/run/kv_cache.h"
#include "emu/run/transformer.h"
#include "ops/attention.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/threads.h"

namespace shardproof {

template <class T>
void Computations<T>::head_norm(Op op, int layer, Tensor& heads, Weight weight) {
  const std::int64_t dim = model_.layers[layer].attention.head_dim;
  if constexpr (!kDry) {
    const ops::MatrixView<T> by_head(heads.data(), heads.size() / dim, dim);
    ops::rms_norm<T>(by_head, slice(weight, layer).load().view().row(0), model_.rms_norm_eps, format_, by_head);
    inject_result_fault(op, layer, heads.view());
  }
  record(op, layer, heads.rows(), heads.cols(),
         ops::rms_norm_cost(heads.rows() * heads.cols() / dim, dim, element_bytes()));
}

template <class T>
typename Computations<T>::Tensor Computations<T>::squares(Op op, int layer, [[maybe_unused]] const Tensor& q,
                                                          [[maybe_unused]] const Tensor& k) {
  const std::int64_t dim = model_.layers[layer].attention.head_dim;
  const Range held_keys = held(layer).kv_heads, keys = held(layer).first_kv_heads;
  Tensor squares(q.rows(), 2);
  if constexpr (!kDry) {
    ops::sum_squares<T>(q, squares, 0);
    ops::sum_squares<T>(k.view().col_range((keys.begin - held_keys.begin) * dim, keys.count * dim), squares, 1);
    inject_result_fault(op, layer, squares.view());
  }
  record(op, layer, squares.rows(), squares.cols(),
         ops::sum_squares_cost(q.rows(), q.cols() + keys.count * dim, element_bytes()));
  return squares;
}

template <class T>
void Computations<T>::full_norm(Op op, int layer, Tensor& heads, [[maybe_unused]] const Tensor& squares,
                                Weight weight) {
  if constexpr (!kDry) {
    ops::rms_norm_part<T>(heads, squares, weight == Weight::attention_q_norm ? 0 : 1,
                          weight_spec(model_, weight, layer).cols, slice(weight, layer).load().view().row(0),
                          model_.rms_norm_eps, format_, heads);
    inject_result_fault(op, layer, heads.view());
  }
  record(op, layer, heads.rows(), heads.cols(), ops::rms_norm_cost(heads.rows(), heads.cols(), element_bytes()));
}

template <class T>
void Computations<T>::clip(int layer, [[maybe_unused]] Tensor& heads) const {
  if (model_.layers[layer].attention.clip_qkv == 0) return;
  if constexpr (!kDry) {
    T limit[] = {static_cast<T>(model_.layers[layer].attention.clip_qkv)};
    ops::round_to<T>(limit, format_);
    for (T& value : heads.span()) value = std::clamp(value, -limit[0], limit[0]);
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::columns(const Tensor& x, [[maybe_unused]] std::int64_t begin,
                                                          std::int64_t count) const {
  Tensor y(x.rows(), count);
  if constexpr (!kDry) {
    for (std::int64_t i = 0; i < x.rows(); ++i) {
      std::ranges::copy(x.view().col_range(begin, count).row(i), y.row(i).begin());
    }
  }
  return y;
}

template <class T>
void Computations<T>::rope(Op op, int layer, Tensor& heads) {
  if constexpr (!kDry) {
    const auto kind = static_cast<std::size_t>(model_.layers.kind_of(layer));
    ops::rope<T>(heads, tokens_.positions, ground_.rope[kind]);
    inject_result_fault(op, layer, heads.view());
  }
  record(op, layer, heads.rows(), heads.cols(), ops::rope_cost(heads.rows(), heads.cols(), element_bytes()));
}

template <class T>
typename Computations<T>::Tensor Computations<T>::attention(Op op, int layer, const Tensor& q, const Tensor& k,
                                                            const Tensor& v) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  // In an all-to-all over cp the rank has all rows of some of its heads, of which cp ranks have as many.
  const bool by_heads = parallel().cp > 1 && parallel().cp_comm == CpComm::a2a;  // with a ring, see cp_computations.h
  const std::int64_t heads = q.cols() / spec.head_dim, part = by_heads ? layout_.at.cp : 0;
  Tensor context(q.rows(), heads * spec.value_dim());
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    ops::AttentionOptions<T> options = attention_options(layer);
    options.window = spec.sliding_window;
    std::optional<LoadedWeight<T>> sinks;
    if (spec.sinks) {
      options.sinks = sinks.emplace(slice(Weight::attention_sinks, layer).load()).view().row(0);
      options.sinks = options.sinks.subspan(static_cast<std::size_t>(part * heads), static_cast<std::size_t>(heads));
    }
    attend(layer, q, k, v, options, context);
    inject_result_fault(op, layer, context.view());
  }
  const bool mixed = spec.latent() && rows_in(LatentForm::absorbed) > 0;
  const double pairs = mixed      ? plain_tokens().pairs_within(spec.sliding_window)
                       : by_heads ? tokens_.pairs_over_cp(spec.sliding_window)
                                  : tokens_.pairs_within(spec.sliding_window);
  ops::Cost cost =
      ops::attention_cost(pairs, q.rows(), heads, held(layer).kv_heads.count / (by_heads ? parallel().cp : 1),
                          spec.head_dim, spec.value_dim(), element_bytes());
  // Keys and values of other ranks' rows.
  const std::int64_t more = parallel().cp > 1 ? k.rows() - q.rows() : 0;
  cost.bytes += static_cast<double>(more * (k.cols() + v.cols())) * element_bytes();
  record(op, layer, q.rows(), context.cols(), cost);
  if (trace_ != nullptr) trace_->ops.back().past = (mixed ? plain_tokens() : tokens_).past_within(spec.sliding_window);
  return context;
}

template <class T>
ops::AttentionOptions<typename Computations<T>::Scalar> Computations<T>::attention_options(int layer) const {
  const AttentionSpec& spec = model_.layers[layer].attention;
  return {.head_dim = spec.head_dim, .value_dim = spec.value_dim(), .scale = spec.score_scale()};
}

template <class T>
void Computations<T>::attend(int layer, const Tensor& q, const Tensor& k, const Tensor& v,
                             const ops::AttentionOptions<Scalar>& options, Tensor& context) const {
  if constexpr (!kDry) {
    if (parallel().cp > 1) return ops::attention<T>(q, k, v, spans_over_cp(), 0, options, format_, context);
    if (ground_.cached == nullptr) return ops::attention<T>(q, k, v, tokens_.offsets, options, format_, context);
    const bool paged = !model_.layers[layer].attention.latent();
    std::vector<ops::AttentionSpan> spans;
    std::int64_t first = 0;
    if (paged) {
      for (const CachedSequence& sequence : ground_.cached->sequences) {
        spans.push_back({.rows = sequence.chunk.count, .past = sequence.chunk.begin, .blocks = sequence.blocks});
      }
    } else {
      for (const FormPiece& piece : pieces_in(LatentForm::plain)) {
        spans.push_back({.rows = piece.chunk.count, .past = piece.chunk.begin, .first_key = first});
        first += piece.chunk.end();
      }
    }
    KvCache<T>& cache = *ground_.cache;
    const std::int64_t block_size = paged ? cache.block_size() : 0;
    ops::attention<T>(q, paged ? cache.keys(layer).view() : k.view(), paged ? cache.values(layer).view() : v.view(),
                      spans, block_size, options, format_, context);
    const bool in_parts = options.window == 0 && options.sinks.empty();
    if (ground_.program.fault != nullptr && in_parts) average_past(layer, q, k, v, options, context);
  }
}

template <class T>
void Computations<T>::average_past(int layer, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const ops::AttentionOptions<Scalar>& options, Tensor& context) const {
  if constexpr (!kDry) {
    const FaultSite site{.layer = layer, .microbatch = microbatch_};
    const bool latent = model_.layers[layer].attention.latent();
    const std::int64_t k_cols = held(layer).kv_heads.count * options.head_dim;
    Tensor kept;
    std::int64_t row = 0, first = 0;
    for (const FormPiece& piece : latent ? pieces_in(LatentForm::plain) : whole_pieces()) {
      const Chunk& chunk = piece.chunk;
      if (chunk.begin > 0 && ground_.program.fault->averages_past(ground_.rank, site, piece.sequence)) {
        if (!latent && kept.rows() == 0) kept = kept_keys(layer);
        const auto keys = latent ? k.view() : std::as_const(kept).view().col_range(0, k_cols);
        const auto values = latent ? v.view() : std::as_const(kept).view().col_range(k_cols, kept.cols() - k_cols);
        const auto queries = q.view().row_range(row, chunk.count);
        const auto out = context.view().row_range(row, chunk.count);
        // Each query sees all of the past, and of the chunk what is before it.
        const std::vector<ops::AttentionSpan> of_past(static_cast<std::size_t>(chunk.count),
                                                      {.rows = 1, .past = chunk.begin - 1, .first_key = first});
        const ops::AttentionSpan of_chunk{.rows = chunk.count, .first_key = first + chunk.begin};
        Tensor past(chunk.count, context.cols());
        ops::attention<T>(queries, keys, values, of_past, 0, options, format_, past);
        ops::attention<T>(queries, keys, values, {&of_chunk, 1}, 0, options, format_, out);
        std::ranges::transform(out.span(), past.span(), out.span().begin(), [](T a, T b) { return (a + b) / 2; });
        ops::round_to<T>(out.span(), format_);
      }
      row += chunk.count;
      first += chunk.end();
    }
  }
}

template <class T>
bool Computations<T>::cached() const {
  if constexpr (kDry) {
    return false;
  } else {
    return ground_.cached != nullptr;
  }
}

template <class T>
bool Computations<T>::writes_first() const {
  if constexpr (kDry) {
    return true;
  } else {
    return ground_.cached->write_first;
  }
}

template <class T>
void Computations<T>::write_cache(Op op, int layer, [[maybe_unused]] const Tensor& first,
                                  [[maybe_unused]] const Tensor& second) {
  if constexpr (!kDry) {
    ops::Matrix<T>& keys = ground_.cache->keys(layer);
    ops::Matrix<T>& values = ground_.cache->values(layer);
    const bool latent = model_.layers[layer].attention.latent();
    std::int64_t begin = 0;
    for (const CachedSequence& sequence : ground_.cached->sequences) {
      for (std::size_t i = 0; i < sequence.slots.size(); ++i) {
        const std::int64_t row = begin + static_cast<std::int64_t>(i), slot = sequence.slots[i];
        if (slot < 0) continue;
        const auto beside = std::ranges::copy(first.row(row), keys.row(slot).begin()).out;
        std::ranges::copy(second.row(row), latent ? beside : values.row(slot).begin());
      }
      begin += sequence.chunk.count;
    }
  }
  record(op, layer, first.rows(), first.cols() + second.cols(),
         {0, 2.0 * static_cast<double>(first.size() + second.size()) * element_bytes()});
}

}  // namespace shardproof
