#include "emu/run/context_parallel.h"

#include <utility>

namespace shardproof {
namespace {

template <class T>
Task<TensorOf<T>> attend_to_gathered(Context<T>& ctx, int layer, const TensorOf<T>& q, const TensorOf<T>& k,
                                     const TensorOf<T>& v) {
  using Tensor = TensorOf<T>;
  const RowOrder order = ctx.order_over_cp();
  const Tensor gathered_k = co_await ctx.gather_over_cp(Op::attention_gather_k, layer, k);
  const Tensor gathered_v = co_await ctx.gather_over_cp(Op::attention_gather_v, layer, v);
  const Tensor all_k = ctx.gather_rows(Op::attention_in_order, layer, gathered_k, order);
  const Tensor all_v = ctx.gather_rows(Op::attention_in_order, layer, gathered_v, order);
  co_return ctx.attention(Op::attention_context, layer, q, all_k, all_v);
}

template <class T>
Task<TensorOf<T>> attend_in_ring(Context<T>& ctx, int layer, const TensorOf<T>& q, const TensorOf<T>& k,
                                 const TensorOf<T>& v) {
  using Tensor = TensorOf<T>;
  const int members = ctx.parallel().ring(), me = ctx.layout().at.cp / ctx.parallel().heads_dealt();
  typename Context<T>::RingParts parts;
  Tensor held = ctx.beside(k, v);
  for (int step = 0; step < members; ++step) {
    const int keys_of = (me + members - step) % members;
    const bool last = step + 1 == members;
    Tensor next(last ? 0 : ctx.rows_of_member((keys_of + members - 1) % members), held.cols());
    typename Context<T>::RingStep under_way;
    if (!last) under_way = ctx.begin_ring_step(layer, held, next);
    ctx.attend_to_part(Op::attention_ring_part, layer, q, held, keys_of, parts);
    if (!last) co_await ctx.end_ring_step(under_way);
    ctx.keep_part(std::move(held), parts);
    held = std::move(next);
  }
  co_return ctx.merge_parts(Op::attention_ring_merge, layer, q, parts);
}

/// The rank's rows of all its heads to its part of the heads, of the rows of all that heads are dealt out among.
template <class T>
Task<TensorOf<T>> to_heads(Context<T>& ctx, int layer, const TensorOf<T>& x, const RowOrder& order) {
  using Tensor = TensorOf<T>;
  const Tensor split = ctx.split_columns(Op::attention_split_heads, layer, x, ctx.parallel().heads_dealt());
  const Tensor all = co_await ctx.to_heads_over_cp(Op::attention_heads_in, layer, split);
  co_return ctx.gather_rows(Op::attention_in_order, layer, all, order);
}

/// Of all rows, or of a member of the ring.
template <class T>
Task<TensorOf<T>> attend_by_heads(Context<T>& ctx, int layer, const TensorOf<T>& q, const TensorOf<T>& k,
                                  const TensorOf<T>& v) {
  using Tensor = TensorOf<T>;
  const RowOrder order = ctx.order_over_dealt();
  const Tensor all_q = co_await to_heads(ctx, layer, q, order);
  const Tensor all_k = co_await to_heads(ctx, layer, k, order);
  const Tensor all_v = co_await to_heads(ctx, layer, v, order);
  Tensor context;
  if (ctx.parallel().in_ring()) {
    context = co_await attend_in_ring(ctx, layer, all_q, all_k, all_v);
  } else {
    context = ctx.attention(Op::attention_context, layer, all_q, all_k, all_v);
  }
  const Tensor held = ctx.gather_rows(Op::attention_out_of_order, layer, context, ctx.inverse_of(order));
  const Tensor split = co_await ctx.to_rows_over_cp(Op::attention_heads_out, layer, held);
  co_return ctx.join_columns(Op::attention_join_heads, layer, split, ctx.parallel().heads_dealt());
}

}  // namespace

template <class T>
Task<TensorOf<T>> attend_over_cp(Context<T>& ctx, int layer, TensorOf<T> q, TensorOf<T> k, TensorOf<T> v) {
  switch (ctx.parallel().cp_comm) {
    case CpComm::p2p:
      break;
    case CpComm::all_gather:
      co_return co_await attend_to_gathered(ctx, layer, q, k, v);
    case CpComm::a2a:
    case CpComm::a2a_p2p:
      co_return co_await attend_by_heads(ctx, layer, q, k, v);
  }
  co_return co_await attend_in_ring(ctx, layer, q, k, v);
}

template Task<TensorOf<float>> attend_over_cp(Context<float>&, int, TensorOf<float>, TensorOf<float>, TensorOf<float>);
template Task<TensorOf<double>> attend_over_cp(Context<double>&, int, TensorOf<double>, TensorOf<double>,
                                               TensorOf<double>);
template Task<TensorOf<ShapeOnly>> attend_over_cp(Context<ShapeOnly>&, int, TensorOf<ShapeOnly>, TensorOf<ShapeOnly>,
                                                  TensorOf<ShapeOnly>);

}  // namespace shardproof
