#include "emu/run/attention_block.h"

#include <utility>

#include "emu/run/reduction.h"

namespace shardproof {

template <class T>
Task<> attention_block(Context<T>& ctx, int layer, TensorOf<T>& x) {
  using Tensor = TensorOf<T>;
  Tensor norm = ctx.rms_norm(Op::attention_norm, layer, x, Weight::attention_norm);
  ctx.tap(TapKind::attention_norm, layer, norm);
  const Tensor full = co_await gather_stream(ctx, Op::attention_gather, layer, std::move(norm));

  Tensor q = ctx.linear(Op::attention_q, layer, full, Weight::attention_q);
  Tensor k = ctx.linear(Op::attention_k, layer, full, Weight::attention_k);
  Tensor v = ctx.linear(Op::attention_v, layer, full, Weight::attention_v);
  ctx.rope(Op::attention_rope_q, layer, q);
  ctx.rope(Op::attention_rope_k, layer, k);
  ctx.tap(TapKind::attention_q, layer, q);
  ctx.tap(TapKind::attention_k, layer, k);
  ctx.tap(TapKind::attention_v, layer, v);
  if (ctx.parallel().cp > 1) {
    k = co_await ctx.gather_over_cp(Op::attention_gather_k, layer, std::move(k));
    v = co_await ctx.gather_over_cp(Op::attention_gather_v, layer, std::move(v));
  }
  const Tensor context = ctx.attention(Op::attention_context, layer, q, k, v);
  ctx.tap(TapKind::attention_context, layer, context);

  Tensor partial = ctx.partial_linear(Op::attention_output, layer, context, Weight::attention_output);
  ctx.tap(TapKind::attention_partial, layer, partial);
  const Tensor output = co_await reduce_to_stream(ctx, Op::attention_reduce, layer, std::move(partial));
  ctx.tap(TapKind::attention_output, layer, output);
  ctx.add(Op::attention_residual, layer, x, output);
  ctx.tap(TapKind::attention_residual, layer, x);
}

template Task<> attention_block(Context<float>&, int, TensorOf<float>&);
template Task<> attention_block(Context<double>&, int, TensorOf<double>&);
template Task<> attention_block(Context<ShapeOnly>&, int, TensorOf<ShapeOnly>&);

}  // namespace shardproof
