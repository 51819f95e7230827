#include "emu/run/attention_block.h"

#include <utility>

#include "emu/run/context_parallel.h"
#include "emu/run/decode_context_parallel.h"
#include "emu/run/reduction.h"

namespace shardproof {

namespace {

template <class T>
struct Heads {
  TensorOf<T> q, k, v;
  TensorOf<T> latent;  ///< of latent attention, normed: what k and v are made from
  TensorOf<T> shared;  ///< dry, of absorbed tokens, which have no k: the end of the key that their heads share
};

/// Norms queries and keys over all heads: each rank has the squares of its own, tp has them all.
template <class T>
Task<> norm_over_heads(Context<T>& ctx, int layer, Heads<T>& heads) {
  TensorOf<T> squares = ctx.squares(Op::attention_squares, layer, heads.q, heads.k);
  ctx.tap(TapKind::attention_squares_partial, layer, squares);
  co_await ctx.all_reduce_scalars(Op::attention_squares_reduce, layer, squares);
  ctx.tap(TapKind::attention_squares, layer, squares);
  ctx.full_norm(Op::attention_q_norm, layer, heads.q, squares, Weight::attention_q_norm);
  ctx.full_norm(Op::attention_k_norm, layer, heads.k, squares, Weight::attention_k_norm);
}

/// Queries, keys and values of the rank's heads, before the rotary embedding; of all rows.
template <class T>
Task<Heads<T>> project_heads(Context<T>& ctx, int layer, const TensorOf<T>& full) {
  Heads<T> heads;
  heads.q = ctx.linear(Op::attention_q, layer, full, Weight::attention_q, Weight::attention_q_bias);
  heads.k = ctx.linear(Op::attention_k, layer, full, Weight::attention_k, Weight::attention_k_bias);
  heads.v = ctx.linear(Op::attention_v, layer, full, Weight::attention_v, Weight::attention_v_bias);
  ctx.clip(layer, heads.v);
  ctx.tap_if(TapKind::attention_q_projection, layer, heads.q);
  ctx.tap_if(TapKind::attention_k_projection, layer, heads.k);
  const QueryKeyNorm norm = ctx.model().layers[layer].attention.query_key_norm;
  if (norm == QueryKeyNorm::full) co_await norm_over_heads(ctx, layer, heads);
  if (norm == QueryKeyNorm::head) {
    ctx.head_norm(Op::attention_q_norm, layer, heads.q, Weight::attention_q_norm);
    ctx.head_norm(Op::attention_k_norm, layer, heads.k, Weight::attention_k_norm);
  }
  ctx.clip(layer, heads.q);
  ctx.clip(layer, heads.k);
  if (norm != QueryKeyNorm::none) {
    ctx.tap(TapKind::attention_q_normed, layer, heads.q);
    ctx.tap(TapKind::attention_k_normed, layer, heads.k);
  }
  co_return heads;
}

/// Keys and values of heads from the latent, normed, and the key that they share.
template <class T>
void make_heads(Context<T>& ctx, int layer, const TensorOf<T>& latent, const TensorOf<T>& shared, Heads<T>& heads) {
  const TensorOf<T> product = ctx.linear(Op::attention_kv, layer, latent, Weight::attention_kv);
  ctx.tap(TapKind::attention_kv_projection, layer, product);
  typename Context<T>::KeysAndValues split = ctx.split_heads(Op::attention_heads, layer, product, shared);
  heads.k = std::move(split.k);
  heads.v = std::move(split.v);
}

/// The same by way of latents, which every rank of tp computes whole: what a cache would hold is theirs together.
template <class T>
Heads<T> project_latent(Context<T>& ctx, int layer, const TensorOf<T>& full) {
  using Tensor = TensorOf<T>;
  const AttentionSpec& spec = ctx.model().layers[layer].attention;
  Heads<T> heads;
  if (spec.q_lora_rank > 0) {
    const Tensor latent =
        ctx.linear(Op::attention_q_latent, layer, full, Weight::attention_q_latent, Weight::attention_q_latent_bias);
    ctx.tap(TapKind::attention_q_latent, layer, latent);
    const Tensor norm = ctx.rms_norm(Op::attention_q_latent_norm, layer, latent, Weight::attention_q_latent_norm);
    ctx.tap(TapKind::attention_q_latent_norm, layer, norm);
    heads.q = ctx.linear(Op::attention_q, layer, norm, Weight::attention_q);
  } else {
    heads.q = ctx.linear(Op::attention_q, layer, full, Weight::attention_q);
  }
  ctx.tap(TapKind::attention_q_projection, layer, heads.q);
  const Tensor latent =
      ctx.linear(Op::attention_kv_latent, layer, full, Weight::attention_kv_latent, Weight::attention_kv_latent_bias);
  ctx.tap(TapKind::attention_kv_latent, layer, latent);
  Tensor norm = ctx.rms_norm(Op::attention_kv_latent_norm, layer, ctx.columns(latent, 0, spec.kv_lora_rank),
                             Weight::attention_kv_latent_norm);
  ctx.tap(TapKind::attention_kv_latent_norm, layer, norm);
  const Tensor shared = ctx.columns(latent, spec.kv_lora_rank, spec.rope.dim);
  const std::int64_t plain = ctx.rows_in(LatentForm::plain);
  if (!kIsDry<T> || plain == norm.rows()) {
    make_heads(ctx, layer, norm, shared, heads);
  } else {
    // Those of absorbed tokens are made for who holds a run to the reference: no attention reads them.
    heads.shared = ctx.take_rows(LatentForm::absorbed, shared);
    if (plain > 0) {
      make_heads(ctx, layer, ctx.take_rows(LatentForm::plain, norm), ctx.take_rows(LatentForm::plain, shared), heads);
    }
  }
  heads.latent = std::move(norm);
  return heads;
}

/// Keys and values of the rows, which are in place, to the cache.
template <class T>
void write_cache(Context<T>& ctx, int layer, const Heads<T>& heads) {
  const AttentionSpec& spec = ctx.model().layers[layer].attention;
  if (!spec.latent()) return ctx.write_cache(Op::attention_cache_write, layer, heads.k, heads.v);
  // Every head's key ends with the one that they share.
  const TensorOf<T> shared = ctx.columns(heads.k, spec.head_dim - spec.rope.dim, spec.rope.dim);
  ctx.write_cache(Op::attention_cache_write, layer, heads.latent, shared);
}

/// Latent attention: what is cached of the sequences that have tokens in the plain form.
template <class T>
Task<TensorOf<T>> cached_latents(Context<T>& ctx, int layer) {
  TensorOf<T> rows = ctx.read_cache(Op::attention_cache_read, layer);
  if (ctx.parallel().dcp > 1) rows = co_await gather_latents(ctx, layer, rows);
  co_return rows;
}

/// Of the queries in the plain form: keys and values of the tokens that they see are made anew from what is cached.
template <class T>
Task<TensorOf<T>> attend_plain(Context<T>& ctx, int layer, const Heads<T>& heads, const TensorOf<T>& q) {
  const AttentionSpec& spec = ctx.model().layers[layer].attention;
  TensorOf<T> rows;
  if (ctx.cached() || ctx.parallel().dcp > 1) rows = co_await cached_latents(ctx, layer);
  // Dry, attention is to what the step itself makes.
  if (!ctx.cached()) co_return ctx.attention(Op::attention_context, layer, q, heads.k, heads.v);
  const TensorOf<T> product =
      ctx.linear(Op::attention_cached_kv, layer, ctx.columns(rows, 0, spec.kv_lora_rank), Weight::attention_kv);
  const TensorOf<T> shared = ctx.columns(rows, spec.kv_lora_rank, spec.rope.dim);
  const typename Context<T>::KeysAndValues all = ctx.split_heads(Op::attention_cached_heads, layer, product, shared);
  co_return ctx.attention(Op::attention_context, layer, q, all.k, all.v);
}

/// Of the queries in the absorbed form, which attend to latents as they are cached.
template <class T>
Task<TensorOf<T>> attend_absorbed(Context<T>& ctx, int layer, const TensorOf<T>& q) {
  using Tensor = TensorOf<T>;
  const Tensor absorbed = ctx.absorb_queries(Op::attention_absorb, layer, q);
  ctx.tap_absorbed(TapKind::attention_q_absorbed, layer, absorbed);
  Tensor latents;
  if (ctx.parallel().dcp > 1) {
    latents = co_await attend_over_dcp(ctx, layer, absorbed);
  } else {
    latents = ctx.attend_to_latents(Op::attention_latent_context, layer, absorbed);
  }
  ctx.tap_absorbed(TapKind::attention_latent_context, layer, latents);
  co_return ctx.expand_context(Op::attention_expand, layer, latents);
}

/// Latent attention, each row in its own form.
template <class T>
Task<TensorOf<T>> attend_in_forms(Context<T>& ctx, int layer, const Heads<T>& heads) {
  using Tensor = TensorOf<T>;
  const std::int64_t absorbed = ctx.rows_in(LatentForm::absorbed);
  if (absorbed == 0) co_return co_await attend_plain(ctx, layer, heads, heads.q);
  if (absorbed == heads.q.rows()) co_return co_await attend_absorbed(ctx, layer, heads.q);
  const Tensor plain = co_await attend_plain(ctx, layer, heads, ctx.take_rows(LatentForm::plain, heads.q));
  const Tensor rest = co_await attend_absorbed(ctx, layer, ctx.take_rows(LatentForm::absorbed, heads.q));
  Tensor context(heads.q.rows(), rest.cols());
  ctx.put_rows(LatentForm::plain, plain, context);
  ctx.put_rows(LatentForm::absorbed, rest, context);
  co_return context;
}

/// Of the rows' queries, with keys and values of the tokens before them from the cache.
template <class T>
Task<TensorOf<T>> attend_over_cache(Context<T>& ctx, int layer, Heads<T>& heads) {
  const bool latent = ctx.model().layers[layer].attention.latent();
  const bool first = ctx.writes_first();
  if (ctx.cached() && first) write_cache(ctx, layer, heads);
  TensorOf<T> context;
  if (latent) {
    context = co_await attend_in_forms(ctx, layer, heads);
  } else if (ctx.parallel().dcp > 1) {
    context = co_await attend_over_dcp(ctx, layer, heads.q);
  } else {
    context = ctx.attention(Op::attention_context, layer, heads.q, heads.k, heads.v);
  }
  if (ctx.cached() && !first) write_cache(ctx, layer, heads);
  co_return context;
}

}  // namespace

template <class T>
Task<> attention_block(Context<T>& ctx, int layer, TensorOf<T>& x) {
  using Tensor = TensorOf<T>;
  Tensor norm = ctx.norm(Op::attention_norm, layer, x, Weight::attention_norm, Weight::attention_norm_bias);
  ctx.tap(TapKind::attention_norm, layer, norm);
  const Tensor full = co_await gather_stream(ctx, Op::attention_gather, layer, std::move(norm));

  const bool latent = ctx.model().layers[layer].attention.latent();
  Heads<T> heads;
  if (latent) {
    heads = project_latent(ctx, layer, full);
  } else {
    heads = co_await project_heads(ctx, layer, full);
  }
  ctx.rope(Op::attention_rope_q, layer, heads.q);
  if (heads.k.cols() > 0) ctx.rope(Op::attention_rope_k, layer, heads.k);
  if (heads.shared.cols() > 0) ctx.rope(Op::attention_rope_k, layer, heads.shared);
  ctx.tap(TapKind::attention_q, layer, heads.q);
  ctx.tap(TapKind::attention_k, layer, heads.k);
  ctx.tap(TapKind::attention_v, layer, heads.v);
  Tensor context;
  if (ctx.padded()) {
    context = ctx.context_of_padding(layer);
  } else if (ctx.parallel().cp > 1) {
    context = co_await attend_over_cp(ctx, layer, std::move(heads.q), std::move(heads.k), std::move(heads.v));
  } else if (ctx.cached() || ctx.parallel().dcp > 1 || (latent && ctx.rows_in(LatentForm::absorbed) > 0)) {
    context = co_await attend_over_cache(ctx, layer, heads);
  } else {
    context = ctx.attention(Op::attention_context, layer, heads.q, heads.k, heads.v);
  }
  ctx.tap(TapKind::attention_context, layer, context);

  Tensor partial =
      ctx.partial_linear(Op::attention_output, layer, context, Weight::attention_output, Weight::attention_output_bias);
  ctx.tap(TapKind::attention_partial, layer, partial);
  const Tensor output = co_await reduce_to_stream(ctx, Op::attention_reduce, layer, std::move(partial));
  ctx.tap(TapKind::attention_output, layer, output);
  ctx.add_to_stream(Op::attention_residual, layer, x, output);
  ctx.tap(TapKind::attention_residual, layer, x);
}

template Task<> attention_block(Context<float>&, int, TensorOf<float>&);
template Task<> attention_block(Context<double>&, int, TensorOf<double>&);
template Task<> attention_block(Context<ShapeOnly>&, int, TensorOf<ShapeOnly>&);

}  // namespace shardproof
