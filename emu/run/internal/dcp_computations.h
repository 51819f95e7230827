// Of Computations (computations.h), what decode context parallelism adds to attention; included by computations.cpp
// alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "emu/plan/cache_share.h"
#include "emu/run/computations.h"
#include "emu/run/kv_cache.h"
#include "emu/run/transformer.h"
#include "ops/attention_parts.h"
#include "ops/threads.h"

namespace shardproof {

template <class T>
CacheShare Computations<T>::believed_share() const {
  if constexpr (!kDry) {
    if (ground_.cached != nullptr) return ground_.cached->share;
  }
  return cache_share(parallel(), layout_.at);
}

template <class T>
std::vector<Chunk> Computations<T>::cached_chunks() const {
  std::vector<Chunk> chunks = tokens_.chunks;
  if constexpr (!kDry) {
    for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i] = ground_.cached->sequences[i].chunk;
  }
  return chunks;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::kept_keys(int layer) const {
  const CacheShare share = believed_share();
  const std::vector<Chunk> chunks = cached_chunks();
  std::int64_t count = 0;
  for (const Chunk& chunk : chunks) count += share.count_of(chunk.end());
  const AttentionSpec& spec = model_.layers[layer].attention;
  Tensor kept(count, held(layer).kv_heads.count * (spec.head_dim + spec.value_dim()));
  if constexpr (!kDry) {
    const ops::Matrix<T>&keys = ground_.cache->keys(layer), &values = ground_.cache->values(layer);
    const std::int64_t size = ground_.cache->block_size();
    std::int64_t row = 0;
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      const std::vector<std::int32_t>& blocks = ground_.cached->sequences[i].blocks;
      for (std::int64_t place = 0; place < share.count_of(chunks[i].end()); ++place, ++row) {
        const std::int64_t slot = blocks[static_cast<std::size_t>(place / size)] * size + place % size;
        std::ranges::copy(values.row(slot), std::ranges::copy(keys.row(slot), kept.row(row).begin()).out);
      }
    }
  }
  return kept;
}

namespace dcp {

/// The queries of the chunks, once for each rank of dcp, and which of the rank's kept keys they see.
inline std::vector<ops::PartSpan> part_spans(const std::vector<Chunk>& chunks, const CacheShare& share) {
  std::vector<ops::PartSpan> spans;
  std::int64_t first = 0;
  for (const Chunk& chunk : chunks) {
    std::int64_t before = -1;
    for (std::int64_t token = chunk.begin; token < chunk.end(); ++token) {
      const std::int64_t seen = share.count_of(token + 1);
      if (seen == before) {
        ++spans.back().rows;
      } else {
        spans.push_back({.rows = 1, .first_key = first, .keys = seen});
      }
      before = seen;
    }
    first += share.count_of(chunk.end());
  }
  const std::vector<ops::PartSpan> of_rank = spans;
  for (int rank = 1; rank < share.ranks; ++rank) spans.insert(spans.end(), of_rank.begin(), of_rank.end());
  return spans;
}

}  // namespace dcp

template <class T>
typename Computations<T>::Tensor Computations<T>::largest_scores([[maybe_unused]] int layer, const Tensor& q,
                                                                 [[maybe_unused]] const Tensor& kept) const {
  const AttentionSpec& spec = model_.layers[layer].attention;
  Tensor maximum(q.rows(), held(layer).heads.count);
  if constexpr (std::is_same_v<T, double>) {
    std::ranges::fill(maximum.span(), -std::numeric_limits<T>::infinity());
    const std::int64_t k_cols = held(layer).kv_heads.count * spec.head_dim;
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    ops::raise_maximum(q, kept.view().col_range(0, k_cols), dcp::part_spans(cached_chunks(), believed_share()),
                       attention_options(layer), maximum);
  }
  return maximum;
}

template <class T>
typename Computations<T>::KeptPart Computations<T>::attend_to_kept(Op op, int layer, const Tensor& q,
                                                                   const Tensor& kept,
                                                                   [[maybe_unused]] const Tensor& maximum) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count, k_cols = held(layer).kv_heads.count * spec.head_dim;
  KeptPart part{Tensor(q.rows(), heads * spec.value_dim()), Tensor(q.rows(), heads)};
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const std::vector<ops::PartSpan> spans = dcp::part_spans(cached_chunks(), believed_share());
    const ops::MatrixView<const T> k = kept.view().col_range(0, k_cols);
    const ops::MatrixView<const T> v = kept.view().col_range(k_cols, kept.cols() - k_cols);
    if (format_ != ops::Format::exact) {
      ops::attend_to_part<T>(q, k, v, spans, attention_options(layer), format_, part.context, part.sums);
    } else if constexpr (std::is_same_v<T, double>) {
      for (Tensor* sums : {&part.context, &part.sums}) std::ranges::fill(sums->span(), 0.0);
      ops::add_part(q, k, v, spans, attention_options(layer), maximum, part.context, part.sums);
    }
  }
  const CacheShare share = cache_share(parallel(), layout_.at);
  double pairs = 0;
  for (const Chunk& chunk : tokens_.chunks) pairs += share.pairs_of(chunk.end()) - share.pairs_of(chunk.begin);
  ops::Cost cost =
      ops::attention_cost(pairs * share.ranks, q.rows(), heads, 0, spec.head_dim, spec.value_dim(), element_bytes());
  cost.bytes += static_cast<double>(kept.size()) * element_bytes();
  record(op, layer, q.rows(), part.context.cols(), cost);
  return part;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::merge_kept(Op op, int layer, [[maybe_unused]] const KeptPart& all) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count;
  Tensor context(rows(), heads * spec.value_dim());
  if constexpr (!kDry) {
    std::vector<KeptPart> parts;
    for (int keys_of = 0; keys_of < parallel().dcp; ++keys_of) {
      KeptPart& part = parts.emplace_back(KeptPart{Tensor(rows(), context.cols()), Tensor(rows(), heads)});
      for (std::int64_t row = 0; row < rows(); ++row) {
        std::ranges::copy(all.context.row(keys_of * rows() + row), part.context.row(row).begin());
        std::ranges::copy(all.sums.row(keys_of * rows() + row), part.sums.row(row).begin());
      }
      if (format_ != ops::Format::exact) {
        tap_part(TapKind::attention_ring_context, layer, keys_of, part.context);
        tap_part(TapKind::attention_ring_lse, layer, keys_of, part.sums);
      }
      inject_part_fault(layer, keys_of, part.context, part.sums);
    }
    if (format_ != ops::Format::exact) {
      std::vector<ops::AttentionPart<T>> views;
      for (const KeptPart& part : parts) views.push_back({part.context.view(), part.sums.view()});
      ops::merge_parts<T>(views, format_, context);
    } else if constexpr (std::is_same_v<T, double>) {
      Tensor numerator = Tensor::zeros(rows(), context.cols()), denominator = Tensor::zeros(rows(), heads);
      for (const KeptPart& part : parts) {
        std::ranges::transform(numerator.span(), part.context.span(), numerator.span().begin(), std::plus<>());
        std::ranges::transform(denominator.span(), part.sums.span(), denominator.span().begin(), std::plus<>());
      }
      ops::divide_parts(numerator, denominator, context);
    }
    inject_result_fault(op, layer, context.view());
  }
  record(op, layer, context.rows(), context.cols(),
         ops::merge_parts_cost(parallel().dcp, context.rows(), heads, spec.value_dim(), element_bytes()));
  return context;
}

template <class T>
RowOrder Computations<T>::order_over_dcp(LatentForm form) const {
  const CacheShare share = cache_share(parallel(), layout_.at), first{share.ranks, share.interleave, 0};
  RowOrder order;
  const std::vector<FormPiece> pieces = pieces_in(form);
  std::int64_t each = 0;
  for (const FormPiece& piece : pieces) each += first.count_of(piece.chunk.end());
  std::int64_t begin = 0;
  for (const FormPiece& piece : pieces) {
    const std::int64_t end = piece.chunk.end();
    order.count += end;
    if constexpr (!kDry) {
      for (std::int64_t token = 0; token < end; ++token) {
        order.rows.push_back(share.owner_of(token) * each + begin + share.place_of(token));
      }
    }
    begin += first.count_of(end);
  }
  return order;
}

}  // namespace shardproof
