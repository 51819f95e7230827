#include "emu/run/reduction.h"

#include <utility>

namespace shardproof {
namespace {

template <class T>
Task<ops::Matrix<T>> all_gather_rows(const Stage<T>& stage, ops::Matrix<T> own) {
  ops::Matrix<T> full(stage.rows(), own.cols());
  const std::vector<std::size_t> counts = stage.own_counts(own.cols());
  const ops::Matrix<T>& in = own;
  co_await stage.rank.tp().all_gather_v(in.span(), full.span(), std::span<const std::size_t>(counts));
  co_return full;
}

}  // namespace

template <class T>
Task<ops::Matrix<T>> gather_rows_over_tp(const Stage<T>& stage, ops::Matrix<T> x) {
  if (!stage.layout.parallel.sp || stage.layout.parallel.tp == 1) co_return x;
  co_return co_await all_gather_rows(stage, std::move(x));
}

template <class T>
Task<ops::Matrix<T>> own_rows_to_stream(const Stage<T>& stage, ops::Matrix<T> own) {
  if (stage.layout.parallel.sp || stage.layout.parallel.tp == 1) co_return own;
  co_return co_await all_gather_rows(stage, std::move(own));
}

template <class T>
Task<ops::Matrix<T>> reduce_over_tp(const Stage<T>& stage, ops::Matrix<T> addend) {
  if (stage.layout.parallel.tp > 1) {
    ops::store_partial<T>(addend.span(), stage.format());
    if (stage.layout.parallel.sp) {
      ops::Matrix<T> shard(stage.own_rows().count, addend.cols());
      const std::vector<std::size_t> counts = stage.own_counts(addend.cols());
      const ops::Matrix<T>& in = addend;
      co_await stage.rank.tp().reduce_scatter_v(in.span(), shard.span(), std::span<const std::size_t>(counts));
      addend = std::move(shard);
    } else {
      co_await stage.rank.tp().all_reduce(addend.span());
    }
  }
  ops::store<T>(addend.span(), stage.format());
  co_return addend;
}

template Task<ops::Matrix<float>> gather_rows_over_tp(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> gather_rows_over_tp(const Stage<double>&, ops::Matrix<double>);
template Task<ops::Matrix<float>> own_rows_to_stream(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> own_rows_to_stream(const Stage<double>&, ops::Matrix<double>);
template Task<ops::Matrix<float>> reduce_over_tp(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> reduce_over_tp(const Stage<double>&, ops::Matrix<double>);

}  // namespace shardproof
