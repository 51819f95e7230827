// How the residual stream enters and leaves a tensor-parallel region.
//
//                            without sp                       with sp
//   gather_stream            the rows are there already       all-gather of the rows over tp
//   reduce_to_stream         all-reduce over tp               reduce-scatter of the rows over tp
//   own_rows_to_stream       all-gather of the rows over tp   the rows are there already
#pragma once

#include <utility>

#include "collectives/options.h"
#include "emu/run/context.h"
#include "ops/format.h"

namespace shardproof {

/// [stream rows, n] -> [all rows, n].
template <class T>
Task<TensorOf<T>> gather_stream(Context<T>& ctx, Op op, int layer, TensorOf<T> x) {
  if (!ctx.sp()) co_return x;
  co_return co_await ctx.gather_rows_over_tp(op, layer, std::move(x));
}

/// Partial sums [all rows, n], one per tp rank -> their stored sum [stream rows, n], taken in the order of the
/// communicator's algorithm.
template <class T>
Task<TensorOf<T>> reduce_to_stream(Context<T>& ctx, Op op, int layer, TensorOf<T> partial) {
  if (ctx.sp()) co_return co_await ctx.scatter_rows(op, layer, std::move(partial));
  co_await ctx.all_reduce(op, layer, partial);
  co_return partial;
}

/// [own rows, n] -> [stream rows, n].
template <class T>
Task<TensorOf<T>> own_rows_to_stream(Context<T>& ctx, Op op, int layer, TensorOf<T> own) {
  if (ctx.sp() || ctx.parallel().tp == 1 || ctx.parallel().routes_alike()) co_return own;
  co_return co_await ctx.gather_rows_over_tp(op, layer, std::move(own));
}

/// A format as the wire or accumulation format of a collective.
Rounding rounding_of(ops::Format format);

/// The options of an all-reduce of what is not stored, beside all-reduces with these options.
ReduceOptions scalar_reduction(const ReduceOptions& all_reduce);

/// The options of a reduce-scatter beside all-reduces with these options.
ReduceScatterOptions reduce_scatter_options(const ReduceOptions& all_reduce);

}  // namespace shardproof
