// Of Computations (computations.h), what the two forms of latent attention are made of; included by computations.cpp
// alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "emu/run/computations.h"
#include "emu/run/fault.h"
#include "emu/run/kv_cache.h"
#include "emu/run/transformer.h"
#include "ops/latent.h"
#include "ops/threads.h"

namespace shardproof {

namespace latent {

inline ops::LatentHead head_of(const AttentionSpec& spec) {
  return {.still = spec.head_dim - spec.rope.dim, .turned = spec.rope.dim, .value_dim = spec.value_dim()};
}

/// The weight with each head's rows in place of those of the head so many before it.
template <class T>
ops::Matrix<T> of_heads_further_on(ops::MatrixView<const T> weight, std::int64_t heads, std::int64_t shift) {
  ops::Matrix<T> moved(weight.rows, weight.cols);
  const std::int64_t rows = weight.rows / heads;
  for (std::int64_t row = 0; row < weight.rows; ++row) {
    std::ranges::copy(weight.row((row + shift * rows) % weight.rows), moved.row(row).begin());
  }
  return moved;
}

}  // namespace latent

template <class T>
AbsorbedForm Computations<T>::absorbed_form([[maybe_unused]] int layer) const {
  AbsorbedForm form{.scale = model_.layers[layer].attention.score_scale()};
  if constexpr (!kDry) {
    if (ground_.program.fault != nullptr) {
      ground_.program.fault->edit_absorbed(ground_.rank, {.layer = layer, .microbatch = microbatch_}, form);
    }
  }
  return form;
}

template <class T>
typename Computations<T>::KeysAndValues Computations<T>::split_heads(Op op, int layer, const Tensor& product,
                                                                     const Tensor& shared) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count;
  Tensor k(product.rows(), heads * spec.head_dim), v(product.rows(), heads * spec.value_dim());
  if constexpr (!kDry) {
    ops::split_latent_heads<T>(product, shared, spec.value_dim(), k, v);
    inject_result_fault(op, layer, k.view());
  }
  record(
      op, layer, k.rows(), k.cols() + v.cols(),
      ops::split_latent_heads_cost(product.rows(), product.cols(), shared.cols(), k.cols(), v.cols(), element_bytes()));
  return {std::move(k), std::move(v)};
}

template <class T>
std::vector<typename Computations<T>::FormPiece> Computations<T>::pieces_in(LatentForm form) const {
  std::vector<FormPiece> pieces;
  const std::vector<Chunk> believed = cached_chunks();
  std::int64_t row = 0;
  for (std::size_t i = 0; i < tokens_.chunks.size(); ++i) {
    const std::int64_t count = tokens_.chunks[i].count, plain = tokens_.plain[i];
    Chunk chunk = believed[i];
    const std::int64_t before = form == LatentForm::plain ? 0 : plain;
    chunk.begin += before;
    chunk.count = form == LatentForm::plain ? plain : count - plain;
    if (chunk.count > 0) pieces.push_back({i, row + before, chunk});
    row += count;
  }
  return pieces;
}

template <class T>
RankTokens Computations<T>::plain_tokens() const {
  RankTokens plain;
  for (const FormPiece& piece : pieces_in(LatentForm::plain)) plain.chunks.push_back(piece.chunk);
  plain.pieces = plain.chunks;
  return plain;
}

template <class T>
std::int64_t Computations<T>::rows_in(LatentForm form) const {
  std::int64_t absorbed = 0;
  for (std::size_t i = 0; i < tokens_.chunks.size(); ++i) absorbed += tokens_.chunks[i].count - tokens_.plain[i];
  return form == LatentForm::absorbed ? absorbed : rows() - absorbed;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::take_rows(LatentForm form, const Tensor& x) const {
  Tensor y(rows_in(form), x.cols());
  if constexpr (!kDry) {
    std::int64_t to = 0;
    for (const FormPiece& piece : pieces_in(form)) {
      for (std::int64_t i = 0; i < piece.chunk.count; ++i) {
        std::ranges::copy(x.row(piece.row + i), y.row(to++).begin());
      }
    }
  }
  return y;
}

template <class T>
void Computations<T>::put_rows(LatentForm form, [[maybe_unused]] const Tensor& x, [[maybe_unused]] Tensor& all) const {
  if constexpr (!kDry) {
    std::int64_t from = 0;
    for (const FormPiece& piece : pieces_in(form)) {
      for (std::int64_t i = 0; i < piece.chunk.count; ++i) {
        std::ranges::copy(x.row(from++), all.row(piece.row + i).begin());
      }
    }
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::absorb_queries(Op op, int layer, const Tensor& q) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const ops::LatentHead head = latent::head_of(spec);
  const std::int64_t heads = held(layer).heads.count;
  Tensor absorbed(q.rows(), heads * (spec.kv_lora_rank + head.turned));
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const LoadedWeight<Scalar> weight = slice(Weight::attention_kv, layer).load();
    const std::int64_t shift = absorbed_form(layer).keys_of;
    if (shift == 0) {
      ops::absorb_queries<T>(q, weight, head, absorbed);
    } else {
      ops::absorb_queries<T>(q, latent::of_heads_further_on<T>(weight, heads, shift), head, absorbed);
    }
    inject_result_fault(op, layer, absorbed.view());
    ops::round_to<T>(absorbed.span(), format_);
  }
  record(op, layer, absorbed.rows(), absorbed.cols(),
         ops::absorb_queries_cost(q.rows(), heads, spec.kv_lora_rank, head, element_bytes()));
  return absorbed;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::attend_to_latents(Op op, int layer, const Tensor& q) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const std::int64_t heads = held(layer).heads.count, rank = spec.kv_lora_rank;
  Tensor context(q.rows(), heads * rank);
  std::vector<ops::AttentionSpan> spans;
  double pairs = 0;
  std::int64_t keys = 0, past = 0;
  for (const FormPiece& piece : pieces_in(LatentForm::absorbed)) {
    ops::AttentionSpan& span =
        spans.emplace_back(ops::AttentionSpan{.rows = piece.chunk.count, .past = piece.chunk.begin, .first_key = keys});
    if constexpr (!kDry) span.blocks = ground_.cached->sequences[piece.sequence].blocks;
    for (std::int64_t i = 0; i < span.rows; ++i) pairs += static_cast<double>(span.past + i + 1);
    keys += piece.chunk.end();
    past += span.past;
  }
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    ops::attend_to_latents<T>(q, ground_.cache->keys(layer), spans, ground_.cache->block_size(), latent::head_of(spec),
                              absorbed_form(layer).scale, format_, context);
    inject_result_fault(op, layer, context.view());
  }
  record(op, layer, context.rows(), context.cols(),
         ops::attend_to_latents_cost(pairs, context.rows(), keys, heads, rank, spec.rope.dim, element_bytes()));
  if (trace_ != nullptr) trace_->ops.back().past = static_cast<double>(past);
  return context;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::expand_context(Op op, int layer, const Tensor& latents) {
  const AttentionSpec& spec = model_.layers[layer].attention;
  const ops::LatentHead head = latent::head_of(spec);
  const std::int64_t heads = held(layer).heads.count;
  Tensor context(latents.rows(), heads * head.value_dim);
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const LoadedWeight<Scalar> weight = slice(Weight::attention_kv, layer).load();
    const std::int64_t shift = absorbed_form(layer).values_of;
    if (shift == 0) {
      ops::expand_context<T>(latents, weight, head, context);
    } else {
      ops::expand_context<T>(latents, latent::of_heads_further_on<T>(weight, heads, shift), head, context);
    }
    inject_result_fault(op, layer, context.view());
    ops::round_to<T>(context.span(), format_);
  }
  record(op, layer, context.rows(), context.cols(),
         ops::expand_context_cost(latents.rows(), heads, spec.kv_lora_rank, head, element_bytes()));
  return context;
}

template <class T>
void Computations<T>::tap_absorbed([[maybe_unused]] TapKind kind, [[maybe_unused]] int layer,
                                   [[maybe_unused]] const Tensor& tensor, [[maybe_unused]] int part) const {
  if constexpr (!kDry) {
    if (!tapped_inside() || tensor.rows() == 0) return;
    const TapId id{.layer = layer, .kind = kind, .part = part};
    const std::int64_t width = tap_width(model_, id);
    std::vector<std::int64_t> rows;
    for (const FormPiece& piece : pieces_in(LatentForm::absorbed)) {
      for (std::int64_t i = 0; i < piece.chunk.count; ++i) rows.push_back(tokens_.rows[piece.row + i]);
    }
    ground_.rank.template tap<T>(id, tensor,
                                 Placement::listed(ground_.program.deployment.tokens.tokens(), width, rows,
                                                   part_of(layout_, model_, tap_row(kind).cols, layer, width)));
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::read_cache(Op op, int layer) {
  const CacheShare share = cache_share(parallel(), layout_.at), first{share.ranks, share.interleave, 0};
  const std::vector<FormPiece> pieces = pieces_in(LatentForm::plain);
  std::int64_t tokens = 0;
  for (const FormPiece& piece : pieces) tokens += first.count_of(piece.chunk.end());
  const AttentionSpec& spec = model_.layers[layer].attention;
  Tensor rows(tokens, spec.kv_lora_rank + spec.rope.dim);
  if constexpr (!kDry) {
    const ops::Matrix<T>& keys = ground_.cache->keys(layer);
    const std::int64_t size = ground_.cache->block_size();
    std::int64_t begin = 0;
    for (const FormPiece& piece : pieces) {
      const std::int64_t most = first.count_of(piece.chunk.end());
      const std::int64_t kept = std::min(believed_share().count_of(piece.chunk.end()), most);
      const std::vector<std::int32_t>& blocks = ground_.cached->sequences[piece.sequence].blocks;
      for (std::int64_t place = 0; place < kept; ++place) {
        const std::int64_t block = blocks[static_cast<std::size_t>(place / size)];
        std::ranges::copy(keys.row(block * size + place % size), rows.row(begin + place).begin());
      }
      for (std::int64_t place = kept; place < most; ++place) {
        std::ranges::fill(rows.row(begin + place), std::numeric_limits<T>::quiet_NaN());
      }
      begin += most;
    }
  }
  record(op, layer, rows.rows(), rows.cols(), {0, 2.0 * static_cast<double>(rows.size()) * element_bytes()});
  return rows;
}

}  // namespace shardproof
