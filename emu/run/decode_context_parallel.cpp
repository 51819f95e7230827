#include "emu/run/decode_context_parallel.h"

namespace shardproof {

template <class T>
Task<TensorOf<T>> attend_over_dcp(Context<T>& ctx, int layer, const TensorOf<T>& q) {
  using Tensor = TensorOf<T>;
  const Tensor all_q = co_await ctx.gather_over_dcp(Op::attention_dcp_gather_q, layer, q);
  const Tensor kept = ctx.kept_keys(layer);
  Tensor maximum;
  if (ctx.is_exact()) {
    maximum = co_await ctx.largest_over_dcp(Op::attention_dcp_maximum, layer, ctx.largest_scores(layer, all_q, kept));
  }
  typename Context<T>::KeptPart part = ctx.attend_to_kept(Op::attention_dcp_part, layer, all_q, kept, maximum);
  part.context = co_await ctx.exchange_over_dcp(Op::attention_dcp_context, layer, part.context);
  part.sums = co_await ctx.exchange_sums_over_dcp(Op::attention_dcp_sums, layer, part.sums);
  co_return ctx.merge_kept(Op::attention_dcp_merge, layer, part);
}

template <class T>
Task<TensorOf<T>> gather_latents(Context<T>& ctx, int layer, const TensorOf<T>& kept) {
  const TensorOf<T> all = co_await ctx.gather_over_dcp(Op::attention_dcp_gather_cache, layer, kept);
  co_return ctx.gather_rows(Op::attention_in_order, layer, all, ctx.order_over_dcp());
}

template Task<TensorOf<float>> attend_over_dcp(Context<float>&, int, const TensorOf<float>&);
template Task<TensorOf<double>> attend_over_dcp(Context<double>&, int, const TensorOf<double>&);
template Task<TensorOf<ShapeOnly>> attend_over_dcp(Context<ShapeOnly>&, int, const TensorOf<ShapeOnly>&);
template Task<TensorOf<float>> gather_latents(Context<float>&, int, const TensorOf<float>&);
template Task<TensorOf<double>> gather_latents(Context<double>&, int, const TensorOf<double>&);
template Task<TensorOf<ShapeOnly>> gather_latents(Context<ShapeOnly>&, int, const TensorOf<ShapeOnly>&);

}  // namespace shardproof
