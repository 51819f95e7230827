#include "emu/run/program.h"

#include <numeric>
#include <utility>

#include "emu/run/attention_block.h"
#include "emu/run/moe_block.h"
#include "emu/run/reduction.h"

namespace shardproof {
namespace {

template <class T>
Task<TensorOf<T>> embed_tokens(Context<T>& ctx) {
  TensorOf<T> x = co_await reduce_to_stream(ctx, Op::embedding_reduce, -1, ctx.embed(Op::embedding));
  ctx.tap(TapKind::embedding, -1, x);
  if (ctx.model().embedding_multiplier != 1) {
    ctx.scale(Op::embedding_scale, -1, x, ctx.model().embedding_multiplier);
    ctx.tap(TapKind::embedding_scaled, -1, x);
  }
  co_return x;
}

/// The final norm and the vocabulary-parallel head; logits stay sharded.
template <class T>
Task<> finish(Context<T>& ctx, const TensorOf<T>& x) {
  TensorOf<T> norm = ctx.norm(Op::final_norm, -1, x, Weight::final_norm, Weight::final_norm_bias);
  ctx.tap(TapKind::final_norm, -1, norm);
  const TensorOf<T> full = co_await gather_stream(ctx, Op::head_gather, -1, std::move(norm));
  const TensorOf<T> logits = ctx.linear(Op::logits, -1, full, Weight::head, Weight::head_bias);
  ctx.tap(TapKind::logits, -1, logits);
}

/// The residual stream as it comes to the stage, and as it leaves it.
template <class T>
Task<TensorOf<T>> enter_stage(Context<T>& ctx) {
  if (ctx.layout().first_stage()) co_return co_await embed_tokens(ctx);
  co_return co_await ctx.receive_from_stage_before(Op::stage_receive);
}

template <class T>
Task<> leave_stage(Context<T>& ctx, const TensorOf<T>& x) {
  if (ctx.layout().last_stage()) {
    co_await finish(ctx, x);
  } else {
    co_await ctx.send_to_next_stage(Op::stage_send, x);
  }
}

}  // namespace

template <class T>
Task<> run_item(Context<T>& ctx, const WorkItem& item) {
  std::vector<int> layers(static_cast<std::size_t>(item.layers.count));
  std::iota(layers.begin(), layers.end(), static_cast<int>(item.layers.begin));
  return run_layers(ctx, std::move(layers));
}

template <class T>
Task<> run_layers(Context<T>& ctx, std::vector<int> layers) {
  TensorOf<T> x = co_await enter_stage(ctx);
  for (const int layer : layers) {
    co_await attention_block(ctx, layer, x);
    co_await moe_block(ctx, layer, x);
  }
  co_await leave_stage(ctx, x);
}

template <class T>
Task<> run_pair(Context<T>& first, Context<T>& second, const WorkItem& item) {
  TensorOf<T> x = co_await enter_stage(first), y = co_await enter_stage(second);
  MoePass<T> of_x, of_y;
  for (auto layer = static_cast<int>(item.layers.begin); layer < item.layers.end(); ++layer) {
    co_await attention_block(first, layer, x);
    co_await begin_moe(first, layer, x, of_x);
    if (layer > item.layers.begin) co_await end_moe(second, y, of_y);
    co_await attention_block(second, layer, y);
    co_await begin_moe(second, layer, y, of_y);
    co_await run_dispatched(first, of_x);
    co_await run_dispatched(second, of_y);
    co_await end_moe(first, x, of_x);
  }
  if (item.layers.count > 0) co_await end_moe(second, y, of_y);
  co_await leave_stage(first, x);
  co_await leave_stage(second, y);
}

template Task<> run_item(Context<float>&, const WorkItem&);
template Task<> run_item(Context<double>&, const WorkItem&);
template Task<> run_item(Context<ShapeOnly>&, const WorkItem&);
template Task<> run_layers(Context<float>&, std::vector<int>);
template Task<> run_layers(Context<double>&, std::vector<int>);
template Task<> run_layers(Context<ShapeOnly>&, std::vector<int>);
template Task<> run_pair(Context<float>&, Context<float>&, const WorkItem&);
template Task<> run_pair(Context<double>&, Context<double>&, const WorkItem&);
template Task<> run_pair(Context<ShapeOnly>&, Context<ShapeOnly>&, const WorkItem&);

}  // namespace shardproof
