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
      co_await stage.rank.tp().reduce_scatter_v(in.span(), shard.span(), std::span<const std::size_t>(counts),
                                                reduce_scatter_options(stage.program.reduction));
      addend = std::move(shard);
    } else {
      co_await stage.rank.tp().all_reduce(addend.span(), stage.program.reduction);
    }
  }
  ops::store<T>(addend.span(), stage.format());
  co_return addend;
}

namespace {

template <ops::Format format>
Rounding make_rounding(const char* name) {
  return {.name = name,
          .bytes = ops::bytes_per_element(format),
          .round_float = [](std::span<float> values) { ops::store<float>(values, format); },
          .round_double = [](std::span<double> values) { ops::store<double>(values, format); }};
}

}  // namespace

Rounding rounding_of(ops::Format format) {
  switch (format) {
    case ops::Format::bf16:
      return make_rounding<ops::Format::bf16>("bf16");
    case ops::Format::fp16:
      return make_rounding<ops::Format::fp16>("fp16");
    case ops::Format::fp32:
      return {.name = "fp32", .bytes = 4, .round_double = [](std::span<double> values) {
                for (double& value : values) value = static_cast<float>(value);
              }};
    case ops::Format::fp64:
      return {.name = "fp64", .bytes = 8};
    case ops::Format::exact:
      break;
  }
  return {};
}

ReduceScatterOptions reduce_scatter_options(const ReduceOptions& all_reduce) {
  ReduceScatterOptions options = all_reduce;
  if (options.algorithm != Algorithm::ring) options.algorithm = Algorithm::rank_order;
  return options;
}

template Task<ops::Matrix<float>> gather_rows_over_tp(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> gather_rows_over_tp(const Stage<double>&, ops::Matrix<double>);
template Task<ops::Matrix<float>> own_rows_to_stream(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> own_rows_to_stream(const Stage<double>&, ops::Matrix<double>);
template Task<ops::Matrix<float>> reduce_over_tp(const Stage<float>&, ops::Matrix<float>);
template Task<ops::Matrix<double>> reduce_over_tp(const Stage<double>&, ops::Matrix<double>);

}  // namespace shardproof
