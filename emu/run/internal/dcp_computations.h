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
#include "emu/run/internal/latent_computations.h"
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
std::vector<typename Computations<T>::FormPiece> Computations<T>::whole_pieces() const {
  std::vector<FormPiece> pieces;
  std::int64_t row = 0;
  for (const Chunk& chunk : cached_chunks()) {
    pieces.push_back({pieces.size(), row, chunk});
    row += chunk.count;
  }
  return pieces;
}

template <class T>
typename Computations<T>::KeptHeads Computations<T>::kept_heads(int layer) const {
  const AttentionSpec& spec = model_.layers[layer].attention;
  if (spec.latent()) {
    const std::int64_t rank = spec.kv_lora_rank;
    return {.pieces = pieces_in(LatentForm::absorbed),
            .key_cols = rank + spec.rope.dim,
            .value_cols = {0, rank},
            .options = ops::latent_options<Scalar>(latent::head_of(spec), rank, absorbed_form(layer).scale),
            .latent = true};
  }
  const std::int64_t heads = held(layer).kv_heads.count, key_cols = heads * spec.head_dim;
  return {.pieces = whole_pieces(),
          .key_cols = key_cols,
          .value_cols = {key_cols, heads * spec.value_dim()},
          .options = attention_options(layer)};
}

template <class T>
typename Computations<T>::Tensor Computations<T>::kept_keys(int layer) const {
  const CacheShare share = believed_share();
  const KeptHeads heads = kept_heads(layer);
  std::int64_t count = 0;
  for (const FormPiece& piece : heads.pieces) count += share.count_of(piece.chunk.end());
  Tensor kept(count, std::max(heads.key_cols, heads.value_cols.end()));
  if constexpr (!kDry) {
    const ops::Matrix<T>&keys = ground_.cache->keys(layer), &values = ground_.cache->values(layer);
    const std::int64_t size = ground_.cache->block_size();
    std::int64_t row = 0;
    for (const FormPiece& piece : heads.pieces) {
      const std::vector<std::int32_t>& blocks = ground_.cached->sequences[piece.sequence].blocks;
      for (std::int64_t place = 0; place < share.count_of(piece.chunk.end()); ++place, ++row) {
        const std::int64_t slot = blocks[static_cast<std::size_t>(place / size)] * size + place % size;
        const auto beside = std::ranges::copy(keys.row(slot), kept.row(row).begin()).out;
        if (!heads.latent) std::ranges::copy(values.row(slot), beside);
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
  Tensor maximum(q.rows(), held(layer).heads.count);
  if constexpr (std::is_same_v<T, double>) {
    std::ranges::fill(maximum.span(), -std::numeric_limits<T>::infinity());
    const KeptHeads heads = kept_heads(layer);
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    ops::raise_maximum(q, kept.view().col_range(0, heads.key_cols), dcp::part_spans(heads.chunks(), believed_share()),
                       heads.options, maximum);
  }
  return maximum;
}

template <class T>
typename Computations<T>::KeptPart Computations<T>::attend_to_kept(Op op, int layer, const Tensor& q,
                                                                   const Tensor& kept,
                                                                   [[maybe_unused]] const Tensor& maximum) {
  const KeptHeads with = kept_heads(layer);
  const std::int64_t heads = held(layer).heads.count;
  KeptPart part{Tensor(q.rows(), heads * with.options.value_dim), Tensor(q.rows(), heads)};
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const std::vector<ops::PartSpan> spans = dcp::part_spans(with.chunks(), believed_share());
    const ops::MatrixView<const T> k = kept.view().col_range(0, with.key_cols);
    const ops::MatrixView<const T> v = kept.view().col_range(with.value_cols.begin, with.value_cols.count);
    if (format_ != ops::Format::exact) {
      ops::attend_to_part<T>(q, k, v, spans, with.options, format_, part.context, part.sums);
    } else if constexpr (std::is_same_v<T, double>) {
      for (Tensor* sums : {&part.context, &part.sums}) std::ranges::fill(sums->span(), 0.0);
      ops::add_part(q, k, v, spans, with.options, maximum, part.context, part.sums);
    }
  }
  const CacheShare share = cache_share(parallel(), layout_.at);
  double pairs = 0;
  for (const Chunk& chunk : with.chunks()) pairs += share.pairs_of(chunk.end()) - share.pairs_of(chunk.begin);
  ops::Cost cost = ops::attention_cost(pairs * share.ranks, q.rows(), heads, 0, with.options.head_dim,
                                       with.options.value_dim, element_bytes());
  cost.bytes += static_cast<double>(kept.size()) * element_bytes();
  record(op, layer, q.rows(), part.context.cols(), cost);
  if (trace_ != nullptr) trace_->ops.back().past = static_cast<double>(kept.rows());
  return part;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::merge_kept(Op op, int layer, [[maybe_unused]] const KeptPart& all) {
  const KeptHeads with = kept_heads(layer);
  const std::int64_t heads = held(layer).heads.count, count = all.context.rows() / parallel().dcp;
  Tensor context(count, all.context.cols());
  if constexpr (!kDry) {
    std::vector<KeptPart> parts;
    for (int keys_of = 0; keys_of < parallel().dcp; ++keys_of) {
      KeptPart& part = parts.emplace_back(KeptPart{Tensor(count, context.cols()), Tensor(count, heads)});
      for (std::int64_t row = 0; row < count; ++row) {
        std::ranges::copy(all.context.row(keys_of * count + row), part.context.row(row).begin());
        std::ranges::copy(all.sums.row(keys_of * count + row), part.sums.row(row).begin());
      }
      if (format_ != ops::Format::exact) tap_kept(layer, keys_of, part);
      inject_part_fault(layer, keys_of, part.context, part.sums);
    }
    if (format_ != ops::Format::exact) {
      std::vector<ops::AttentionPart<T>> views;
      for (const KeptPart& part : parts) views.push_back({part.context.view(), part.sums.view()});
      ops::merge_parts<T>(views, format_, context);
    } else if constexpr (std::is_same_v<T, double>) {
      Tensor numerator = Tensor::zeros(count, context.cols()), denominator = Tensor::zeros(count, heads);
      for (const KeptPart& part : parts) {
        std::ranges::transform(numerator.span(), part.context.span(), numerator.span().begin(), std::plus<>());
        std::ranges::transform(denominator.span(), part.sums.span(), denominator.span().begin(), std::plus<>());
      }
      ops::divide_parts(numerator, denominator, context);
    }
    inject_result_fault(op, layer, context.view());
  }
  record(op, layer, context.rows(), context.cols(),
         ops::merge_parts_cost(parallel().dcp, context.rows(), heads, with.options.value_dim, element_bytes()));
  return context;
}

template <class T>
void Computations<T>::tap_kept(int layer, int keys_of, const KeptPart& part) const {
  if (model_.layers[layer].attention.latent()) {
    tap_absorbed(TapKind::attention_latent_part, layer, part.context, keys_of);
    tap_absorbed(TapKind::attention_latent_lse, layer, part.sums, keys_of);
  } else {
    tap_part(TapKind::attention_ring_context, layer, keys_of, part.context);
    tap_part(TapKind::attention_ring_lse, layer, keys_of, part.sums);
  }
}

template <class T>
RowOrder Computations<T>::order_over_dcp() const {
  const CacheShare share = cache_share(parallel(), layout_.at), first{share.ranks, share.interleave, 0};
  RowOrder order;
  const std::vector<FormPiece> pieces = pieces_in(LatentForm::plain);
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
