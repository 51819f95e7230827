#include "emu/run/moe_block.h"

#include <utility>

#include "emu/run/reduction.h"

namespace shardproof {
namespace {

/// The slots of sorted rows; none where there are none, or not as many as rows.
std::vector<std::int64_t> in_order(const std::vector<std::int64_t>& slots, const RowOrder& order) {
  std::vector<std::int64_t> sorted;
  if (slots.size() != order.rows.size()) return sorted;
  for (const std::int64_t row : order.rows) sorted.push_back(slots[static_cast<std::size_t>(row)]);
  return sorted;
}

/// Runs this rank's slice of its experts over rows that are sorted by expert, rows_of[e] of each; [rows, hidden]
/// partial sums over etp. `slots` are those of the rows, for the inner taps.
template <class T>
TensorOf<T> run_experts(Context<T>& ctx, int layer, const TensorOf<T>& x, const std::vector<std::int64_t>& rows_of,
                        const std::vector<std::int64_t>& slots) {
  TensorOf<T> y(x.rows(), x.cols());
  typename Context<T>::ExpertSteps steps;
  if (ctx.tapped_inside()) {
    const std::int64_t width = ctx.held(layer).intermediate_size.count;
    for (TensorOf<T>* step : {&steps.gate, &steps.up, &steps.activation}) *step = TensorOf<T>(x.rows(), width);
  }
  Range rows;
  for (std::size_t e = 0; e < rows_of.size(); ++e) {
    rows = {rows.end(), rows_of[e]};
    if (rows.count > 0) ctx.expert(Op::moe_expert, layer, static_cast<int>(e), x, rows, y, steps);
  }
  ctx.tap_slots(TapKind::expert_gate, layer, steps.gate, slots);
  ctx.tap_slots(TapKind::expert_up, layer, steps.up, slots);
  ctx.tap_slots(TapKind::expert_activation, layer, steps.activation, slots);
  return y;
}

/// Runs the experts over rows in chunks, each by local expert, counts[c * local experts + e] of each; partial sums over
/// etp in the same order, as stored where they are to be reduced. `slots` are those of the rows.
template <class T>
TensorOf<T> run_sorted(Context<T>& ctx, int layer, const TensorOf<T>& x, const std::vector<std::int64_t>& counts,
                       const std::vector<std::int64_t>& slots) {
  using Tensor = TensorOf<T>;
  const std::int64_t experts = ctx.held(layer).most_experts;
  const RowOrder order = ctx.order_by_expert(counts, experts);
  std::vector<std::int64_t> rows_of(static_cast<std::size_t>(experts), 0);
  for (std::size_t i = 0; i < counts.size(); ++i) rows_of[i % rows_of.size()] += counts[i];
  const Tensor sorted = ctx.gather_rows(Op::moe_sort, layer, x, order);
  const Tensor outputs = run_experts(ctx, layer, sorted, rows_of, in_order(slots, order));
  Tensor y = ctx.gather_rows(Op::moe_unsort, layer, outputs, ctx.inverse_of(order));
  ctx.round_partial(y, ctx.parallel().etp);
  ctx.tap_slots(TapKind::expert_partial, layer, y, slots);
  return y;
}

/// The experts' share of the layer on rows that arrived over ep: chunks in order of their sender, each by local expert.
/// counts is [ep * local experts]. Returns the stored outputs in the same order.
template <class T>
Task<TensorOf<T>> experts_over_etp(Context<T>& ctx, int layer, TensorOf<T> x, std::vector<std::int64_t> counts) {
  using Tensor = TensorOf<T>;
  const std::int64_t own_rows = x.rows();
  const bool split = ctx.parallel().etp > 1;
  if (split) {
    counts = co_await ctx.gather_counts(Op::expert_counts, layer, counts);
    x = co_await ctx.gather_over_etp(Op::expert_gather, layer, x, counts);
  }

  Tensor y = run_sorted(ctx, layer, x, counts, ctx.slots_of_experts(layer));
  if (split) y = co_await ctx.reduce_over_etp(Op::expert_reduce, layer, std::move(y), own_rows, counts);
  ctx.round(y);
  co_return y;
}

/// Sends every token to its experts and combines what comes back: [own rows, hidden].
template <class T>
Task<TensorOf<T>> combine_over_all_to_all(Context<T>& ctx, int layer, typename Context<T>::View h,
                                          const typename Context<T>::Routing& routing) {
  using Tensor = TensorOf<T>;
  const Permutation permutation = ctx.permute(layer, ctx.physical_experts(layer, routing));
  Tensor sent = ctx.gather_rows(Op::moe_permute, layer, h, {permutation.slots(), permutation.rows});
  Tensor outputs;
  if (ctx.parallel().ep > 1) {
    const std::vector<std::int64_t> arriving = co_await ctx.exchange_counts(Op::dispatch_counts, layer, permutation);
    Tensor received(sum_of(arriving), sent.cols());
    received = co_await ctx.all_to_all(Op::dispatch, layer, sent, permutation.counts, std::move(received), arriving);
    const Tensor done = co_await experts_over_etp(ctx, layer, std::move(received), arriving);
    // What was sent is not needed any more: the outputs take its memory.
    outputs = co_await ctx.all_to_all(Op::combine_return, layer, done, arriving, std::move(sent), permutation.counts);
  } else {
    outputs = co_await experts_over_etp(ctx, layer, std::move(sent), permutation.counts);
  }
  ctx.tap_slots(TapKind::expert_output, layer, outputs, ctx.sent_slots(layer, permutation));
  co_return ctx.combine(Op::moe_combine, layer, outputs, permutation, routing.weights);
}

std::vector<std::int64_t> counts_of(const std::vector<TokenRows>& rows_of) {
  std::vector<std::int64_t> counts;
  for (const TokenRows& rows : rows_of) counts.push_back(rows.count());
  return counts;
}

/// Gathers every token of the ep group, and reduces what the experts of each rank make of them: [own rows, hidden].
template <class T>
Task<TensorOf<T>> combine_over_all_gather(Context<T>& ctx, int layer, typename Context<T>::View h,
                                          const typename Context<T>::Routing& routing) {
  using Tensor = TensorOf<T>;
  const typename Context<T>::Ids chosen = ctx.physical_experts(layer, routing);
  if (ctx.tapped_inside()) ctx.permute(layer, chosen);  // tells whose slots the experts' rows are
  const std::vector<TokenRows> rows_of = ctx.own_over_ep();
  const std::vector<std::int64_t> counts = counts_of(rows_of);
  const Tensor rows = co_await ctx.gather_over_ep(Op::dispatch_rows, layer, h, counts);
  const typename Context<T>::Ids experts = co_await ctx.gather_choices(Op::dispatch_choice, layer, chosen, counts);
  const Tensor weights = co_await ctx.gather_over_ep(Op::dispatch_weights, layer, routing.weights, counts);

  const Selection selection = ctx.select(layer, experts, counts);
  Tensor selected = ctx.gather_rows(Op::moe_permute, layer, rows, {selection.count, selection.rows});
  const Tensor outputs = co_await experts_over_etp(ctx, layer, std::move(selected), selection.counts);
  ctx.tap_slots(TapKind::expert_output, layer, outputs, ctx.selected_slots(selection, rows_of));
  Tensor partial = ctx.combine_selected(Op::moe_combine, layer, outputs, selection, weights);
  ctx.tap_over_ep(TapKind::moe_partial, layer, partial, rows_of);
  co_return co_await ctx.scatter_over_ep(Op::moe_reduce, layer, std::move(partial), counts);
}

/// Of tokens that every rank of tp has, and routes alike: [all rows, hidden].
template <class T>
Task<TensorOf<T>> combine_over_all_reduce(Context<T>& ctx, int layer, typename Context<T>::View h,
                                          const typename Context<T>::Routing& routing) {
  using Tensor = TensorOf<T>;
  const std::vector<TokenRows> all{ctx.own_tokens()};
  const Selection selection = ctx.select(layer, ctx.physical_experts(layer, routing), counts_of(all));
  const std::vector<std::int64_t> slots = ctx.selected_slots(selection, all);
  const Tensor selected = ctx.gather_rows(Op::moe_permute, layer, h, {selection.count, selection.rows});
  Tensor outputs = run_sorted(ctx, layer, selected, selection.counts, slots);
  co_await ctx.sum_over(Axis::etp, Op::expert_reduce, layer, outputs);
  ctx.tap_slots(TapKind::expert_output, layer, outputs, slots);
  Tensor combined = ctx.combine_selected(Op::moe_combine, layer, outputs, selection, routing.weights);
  if (!ctx.parallel().sums_over_ep()) co_return combined;
  ctx.tap_over_ep(TapKind::moe_partial, layer, combined, all);
  co_await ctx.sum_over(Axis::ep, Op::moe_reduce, layer, combined);
  co_return combined;
}

template <class T>
Task<TensorOf<T>> dispatch_and_combine(Context<T>& ctx, int layer, typename Context<T>::View h,
                                       const typename Context<T>::Routing& routing) {
  if (ctx.parallel().routes_alike()) return combine_over_all_reduce(ctx, layer, h, routing);
  if (ctx.parallel().sums_over_ep()) return combine_over_all_gather(ctx, layer, h, routing);
  return combine_over_all_to_all(ctx, layer, h, routing);
}

template <class T>
typename Context<T>::Routing route_rows(Context<T>& ctx, int layer, typename Context<T>::View own) {
  const TensorOf<T> logits = ctx.linear(Op::router_logits, layer, own, Weight::router, Weight::router_bias);
  ctx.tap(TapKind::router_logits, layer, logits);
  return ctx.route(Op::router_choice, layer, logits);
}

/// The experts' part of the block: [stream rows, hidden].
template <class T>
Task<TensorOf<T>> run_router_and_experts(Context<T>& ctx, int layer, const TensorOf<T>& norm) {
  using Tensor = TensorOf<T>;
  const typename Context<T>::View own = ctx.own_of(norm);
  const typename Context<T>::Routing routing = route_rows(ctx, layer, own);
  Tensor combined = co_await dispatch_and_combine(ctx, layer, own, routing);
  Tensor output = co_await own_rows_to_stream(ctx, Op::moe_gather, layer, std::move(combined));
  ctx.tap(TapKind::moe_output, layer, output);
  co_return output;
}

/// The MLP that serves every token, sliced over tp: [stream rows, hidden].
template <class T>
Task<TensorOf<T>> run_mlp(Context<T>& ctx, int layer, const TensorOf<T>& norm) {
  using Tensor = TensorOf<T>;
  const bool gated = ctx.model().layers[layer].feed_forward.shared_gate;
  Tensor gate;
  if (gated) {
    gate = ctx.linear(Op::shared_gate, layer, norm, Weight::shared_gate);
    ctx.tap(TapKind::shared_gate, layer, gate);
  }
  const Tensor full = co_await gather_stream(ctx, Op::mlp_gather, layer, norm.copy());
  typename Context<T>::ExpertSteps steps;
  Tensor partial = ctx.mlp(Op::mlp, layer, full, steps);
  if (ctx.tapped_inside()) {
    ctx.tap(TapKind::mlp_gate, layer, steps.gate);
    ctx.tap(TapKind::mlp_up, layer, steps.up);
    ctx.tap(TapKind::mlp_activation, layer, steps.activation);
  }
  ctx.tap(TapKind::mlp_partial, layer, partial);
  Tensor output = co_await reduce_to_stream(ctx, Op::mlp_reduce, layer, std::move(partial));
  ctx.tap(TapKind::mlp_output, layer, output);
  if (gated) {
    output = ctx.gated(Op::shared_output, layer, output, gate);
    ctx.tap(TapKind::shared_output, layer, output);
  }
  co_return output;
}

/// x += output + for_all, what the layer has of these.
template <class T>
void add_to_stream(Context<T>& ctx, int layer, TensorOf<T>& x, TensorOf<T> output, const TensorOf<T>& for_all) {
  const FeedForwardSpec& spec = ctx.model().layers[layer].feed_forward;
  if (!spec.dense() && spec.mlp_size() > 0) {
    ctx.add(Op::moe_sum, layer, output, for_all);
    ctx.tap(TapKind::moe_sum, layer, output);
  }
  ctx.add_to_stream(Op::moe_residual, layer, x, spec.dense() ? for_all : output);
  ctx.tap(TapKind::moe_residual, layer, x);
}

}  // namespace

template <class T>
Task<> moe_block(Context<T>& ctx, int layer, TensorOf<T>& x) {
  using Tensor = TensorOf<T>;
  const FeedForwardSpec& spec = ctx.model().layers[layer].feed_forward;
  if (ctx.parallel().overlap == Overlap::shared_expert && !spec.dense()) {
    MoePass<T> pass;
    co_await begin_moe(ctx, layer, x, pass);
    co_await run_dispatched(ctx, pass);
    co_await end_moe(ctx, x, pass);
    co_return;
  }
  const Tensor norm = ctx.norm(Op::moe_norm, layer, x, Weight::moe_norm, Weight::moe_norm_bias);
  ctx.tap(TapKind::moe_norm, layer, norm);
  Tensor output, for_all;
  if (!spec.dense()) output = co_await run_router_and_experts(ctx, layer, norm);
  if (spec.mlp_size() > 0) for_all = co_await run_mlp(ctx, layer, norm);
  add_to_stream(ctx, layer, x, std::move(output), for_all);
}

template <class T>
Task<> begin_moe(Context<T>& ctx, int layer, const TensorOf<T>& x, MoePass<T>& pass) {
  using Tensor = TensorOf<T>;
  const FeedForwardSpec& spec = ctx.model().layers[layer].feed_forward;
  pass.layer = layer;
  const Tensor norm = ctx.norm(Op::moe_norm, layer, x, Weight::moe_norm, Weight::moe_norm_bias);
  ctx.tap(TapKind::moe_norm, layer, norm);
  if (!spec.dense()) {
    const typename Context<T>::View own = ctx.own_of(norm);
    typename Context<T>::Routing routing = route_rows(ctx, layer, own);
    pass.permutation = ctx.permute(layer, ctx.physical_experts(layer, routing));
    pass.weights = std::move(routing.weights);
    pass.sent = ctx.gather_rows(Op::moe_permute, layer, own, {pass.permutation.slots(), pass.permutation.rows});
    pass.arriving = co_await ctx.exchange_counts(Op::dispatch_counts, layer, pass.permutation);
    pass.received = Tensor(sum_of(pass.arriving), pass.sent.cols());
    pass.dispatch =
        ctx.begin_all_to_all(Op::dispatch, layer, pass.sent, pass.permutation.counts, pass.received, pass.arriving);
  }
  if (spec.mlp_size() > 0) pass.for_all = co_await run_mlp(ctx, layer, norm);
}

template <class T>
Task<> run_dispatched(Context<T>& ctx, MoePass<T>& pass) {
  using Tensor = TensorOf<T>;
  const int layer = pass.layer;
  if (ctx.model().layers[layer].feed_forward.dense()) co_return;
  const bool in_time = ctx.awaits_in_time(Op::dispatch, layer);
  if (in_time) co_await ctx.end_all_to_all(Op::dispatch, layer, pass.dispatch);
  // A name of its own: what a conditional makes inside a co_await is destroyed twice by GCC 12.
  Tensor rows = in_time ? std::move(pass.received) : pass.received.copy();
  pass.done = co_await experts_over_etp(ctx, layer, std::move(rows), pass.arriving);
  if (!in_time) co_await ctx.end_all_to_all(Op::dispatch, layer, pass.dispatch);
  pass.outputs = Tensor(pass.sent.rows(), pass.sent.cols());
  pass.way_back =
      ctx.begin_all_to_all(Op::combine_return, layer, pass.done, pass.arriving, pass.outputs, pass.permutation.counts);
}

template <class T>
Task<> end_moe(Context<T>& ctx, TensorOf<T>& x, MoePass<T>& pass) {
  using Tensor = TensorOf<T>;
  const int layer = pass.layer;
  Tensor output;
  if (!ctx.model().layers[layer].feed_forward.dense()) {
    co_await ctx.end_all_to_all(Op::combine_return, layer, pass.way_back);
    ctx.tap_slots(TapKind::expert_output, layer, pass.outputs, ctx.sent_slots(layer, pass.permutation));
    Tensor combined = ctx.combine(Op::moe_combine, layer, pass.outputs, pass.permutation, pass.weights);
    output = co_await own_rows_to_stream(ctx, Op::moe_gather, layer, std::move(combined));
    ctx.tap(TapKind::moe_output, layer, output);
  }
  add_to_stream(ctx, layer, x, std::move(output), pass.for_all);
  pass = {};
}

template Task<> moe_block(Context<float>&, int, TensorOf<float>&);
template Task<> moe_block(Context<double>&, int, TensorOf<double>&);
template Task<> moe_block(Context<ShapeOnly>&, int, TensorOf<ShapeOnly>&);
template Task<> begin_moe(Context<float>&, int, const TensorOf<float>&, MoePass<float>&);
template Task<> begin_moe(Context<double>&, int, const TensorOf<double>&, MoePass<double>&);
template Task<> begin_moe(Context<ShapeOnly>&, int, const TensorOf<ShapeOnly>&, MoePass<ShapeOnly>&);
template Task<> run_dispatched(Context<float>&, MoePass<float>&);
template Task<> run_dispatched(Context<double>&, MoePass<double>&);
template Task<> run_dispatched(Context<ShapeOnly>&, MoePass<ShapeOnly>&);
template Task<> end_moe(Context<float>&, TensorOf<float>&, MoePass<float>&);
template Task<> end_moe(Context<double>&, TensorOf<double>&, MoePass<double>&);
template Task<> end_moe(Context<ShapeOnly>&, TensorOf<ShapeOnly>&, MoePass<ShapeOnly>&);

}  // namespace shardproof
