#include "emu/run/reduction.h"

namespace shardproof {
namespace {

template <ops::Format format>
Rounding make_rounding(const char* name) {
  return {.name = name,
          .bytes = ops::bytes_per_element(format),
          .round_float = [](std::span<float> values) { ops::round_to<float>(values, format); },
          .round_double = [](std::span<double> values) { ops::round_to<double>(values, format); }};
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

ReduceOptions scalar_reduction(const ReduceOptions& all_reduce) {
  ReduceOptions options = all_reduce;
  options.wire = options.accumulate = {};
  return options;
}

ReduceScatterOptions reduce_scatter_options(const ReduceOptions& all_reduce) {
  ReduceScatterOptions options = all_reduce;
  if (options.algorithm != Algorithm::ring) options.algorithm = Algorithm::rank_order;
  return options;
}

}  // namespace shardproof
