// Every op of one rank on one thread. Counters: GFLOP/s or GB/s by the op's own cost formula, and the share of what the
// machine was measured to do just before and just after. Without arguments: the shapes of the five plans and a sweep of
// rows.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "bench/model_ops.h"
#include "bench/ops_shapes.h"
#include "bench/ops_timing.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/machine.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace shardproof::bench {
namespace {

using ops::copy_bandwidth;
using ops::Format;
using ops::Index;
using ops::Matrix;
using ops::peak_flops;
using ops::read_bandwidth;

// More than the last-level cache: elementwise ops are judged by memory.
constexpr Index kManyTokens = 16384;
constexpr Index kHidden = 1024;

template <class T>
void linear(benchmark::State& state, Index m, GemmShape shape) {
  const Matrix<T> x = filled<T>(m, shape.k, 1), w = filled<T>(shape.n, shape.k, 2);
  Matrix<T> y(m, shape.n);
  time_flops<T>(state, ops::linear_cost(m, shape.n, shape.k, sizeof(T)), [&] { ops::linear<T>(x, w, y); });
}

/// A token of each of 8 sequences, their keys in rows one after another or, in as many blocks, scattered.
void decode_attention(benchmark::State& state, Index past, Index block_size) {
  constexpr Index kSequences = 8, kHeads = 8, kKvHeads = 2, kHeadDim = 128, kBlock = 16;
  const Index keys = (past + 1 + kBlock - 1) / kBlock * kBlock, blocks = kSequences * keys / kBlock;
  const auto q = filled<float>(kSequences, kHeads * kHeadDim, 1);
  const auto k = filled<float>(kSequences * keys, kKvHeads * kHeadDim, 2);
  const auto v = filled<float>(kSequences * keys, kKvHeads * kHeadDim, 3);
  ops::Matrix<float> out(kSequences, kHeads * kHeadDim);
  std::vector<std::int32_t> scattered;
  for (Index i = 0; i < blocks; ++i) scattered.push_back(static_cast<std::int32_t>(i * 7 % blocks));
  std::vector<ops::AttentionSpan> spans;
  for (Index s = 0; s < kSequences; ++s) {
    spans.push_back({.rows = 1, .past = past, .first_key = s * keys});
    if (block_size > 0) {
      spans.back().blocks = std::span(scattered).subspan(static_cast<std::size_t>(s * keys / kBlock),
                                                         static_cast<std::size_t>(keys / kBlock));
    }
  }
  const double pairs = static_cast<double>(kSequences * (past + 1));
  time_flops<float>(
      state, ops::attention_cost(pairs, kSequences, kHeads, kKvHeads, kHeadDim, kHeadDim, sizeof(float)),
      [&] { ops::attention<float>(q, k, v, spans, block_size, {.head_dim = kHeadDim}, Format::fp32, out); });
}

template <class T>
void expert(benchmark::State& state, Index tokens, ExpertShape shape) {
  const Matrix<T> x = filled<T>(tokens, shape.hidden, 1), gate = filled<T>(shape.width, shape.hidden, 2),
                  up = filled<T>(shape.width, shape.hidden, 3), down = filled<T>(shape.hidden, shape.width, 4);
  Matrix<T> y(tokens, shape.hidden);
  time_flops<T>(state, ops::expert_cost(tokens, shape.hidden, shape.width, sizeof(T)),
                [&] { ops::expert<T>(x, gate, up, down, Format::fp32, y); });
}

template <class T>
void attention(benchmark::State& state, Index sequence, Index heads, Index kv_heads, Index head_dim, Format format) {
  const Matrix<T> q = filled<T>(sequence, heads * head_dim, 1), k = filled<T>(sequence, kv_heads * head_dim, 2),
                  v = filled<T>(sequence, kv_heads * head_dim, 3);
  const std::vector<std::int64_t> offsets{0, sequence};
  Matrix<T> out(sequence, heads * head_dim);
  time_flops<T>(state, ops::attention_cost(offsets, heads, kv_heads, head_dim, sizeof(T)),
                [&] { ops::attention<T>(q, k, v, offsets, head_dim, format, out); });
}

void norm(benchmark::State& state, Format format) {
  const Matrix<float> x = filled<float>(kManyTokens, kHidden, 1), weight = filled<float>(1, kHidden, 2);
  Matrix<float> y = filled<float>(kManyTokens, kHidden, 3);
  time_bytes(state, ops::rms_norm_cost(kManyTokens, kHidden, 4),
             [&] { ops::rms_norm<float>(x, weight.span(), 1e-5, format, y); });
}

void rope(benchmark::State& state, Format format) {
  Matrix<float> x = filled<float>(kManyTokens, kHidden, 1);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(kManyTokens));
  std::iota(positions.begin(), positions.end(), 0);
  const ops::RopeTable<float> table(kManyTokens, 64, 1e4, format);
  time_bytes(state, ops::rope_cost(kManyTokens, kHidden, 4), [&] { ops::rope<float>(x, positions, table); });
}

void swiglu(benchmark::State& state, Format format) {
  const Matrix<float> gate = filled<float>(kManyTokens, kHidden, 1), up = filled<float>(kManyTokens, kHidden, 2);
  Matrix<float> out = filled<float>(kManyTokens, kHidden, 3);
  time_bytes(state, ops::swiglu_cost(kManyTokens, kHidden, 4), [&] { ops::swiglu<float>(gate, up, format, out); });
}

void add(benchmark::State& state, Format format) {
  const Matrix<float> x = filled<float>(kManyTokens, kHidden, 1), y = filled<float>(kManyTokens, kHidden, 2);
  Matrix<float> out = filled<float>(kManyTokens, kHidden, 3);
  time_bytes(state, ops::add_cost(kManyTokens, kHidden, 4), [&] { ops::add<float>(x, y, format, out); });
}

void route(benchmark::State& state, Index experts, Index top_k) {
  const Matrix<float> logits = filled<float>(kManyTokens, experts, 1);
  Matrix<std::int32_t> ids(kManyTokens, top_k);
  Matrix<float> weights(kManyTokens, top_k);
  time_bytes(state, ops::route_cost(kManyTokens, experts, top_k, 4),
             [&] { ops::route<float>(logits, top_k, true, Format::fp32, ids, weights); });
}

void gather(benchmark::State& state) {
  const Matrix<float> x = filled<float>(kManyTokens, kHidden, 1);
  Matrix<float> out = filled<float>(kManyTokens, kHidden, 2);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(kManyTokens));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i * 7919 % rows.size());
  time_bytes(state, ops::gather_rows_cost(kManyTokens, kHidden, 4), [&] { ops::gather_rows<float>(x, rows, out); });
}

void combine(benchmark::State& state) {
  const Index tokens = kManyTokens / 2;
  const Matrix<float> y = filled<float>(kManyTokens, kHidden, 1), weights = filled<float>(tokens, 2, 2);
  Matrix<std::int64_t> positions(tokens, 2);
  for (Index i = 0; i < positions.size(); ++i) positions.data()[i] = i * 7919 % kManyTokens;
  Matrix<float> out = filled<float>(tokens, kHidden, 3);
  time_bytes(state, ops::combine_cost(tokens, 2, kHidden, 4),
             [&] { ops::combine<float>(y, positions, weights, Format::fp32, out); });
}

void embed(benchmark::State& state) {
  const Matrix<float> table = filled<float>(32000, kHidden, 1);
  Matrix<float> out = filled<float>(kManyTokens, kHidden, 2);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(kManyTokens));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % 32000);
  time_bytes(state, ops::embed_cost(kManyTokens, kHidden, 4), [&] { ops::embed<float>(ids, table, 0, out); });
}

template <class F>
double best_of_a_dozen(F limit) {
  double best = 0;
  for (int i = 0; i < 12; ++i) best = std::max(best, limit());
  return best;
}

void machine(benchmark::State& state) {
  for (auto _ : state) state.counters["peak_GFLOP/s"] = 1e-9 * best_of_a_dozen(peak_flops<float>);
  state.counters["peak_double_GFLOP/s"] = 1e-9 * best_of_a_dozen(peak_flops<double>);
  for (const int kib : {16, 256, 4096, 262144}) {
    const std::size_t bytes = static_cast<std::size_t>(kib) << 10;
    state.counters["read_GB/s_" + std::to_string(kib) + "KiB"] =
        1e-9 * best_of_a_dozen([&] { return read_bandwidth(bytes); });
    state.counters["copy_GB/s_" + std::to_string(kib) + "KiB"] =
        1e-9 * best_of_a_dozen([&] { return copy_bandwidth(bytes / 2); });
  }
}

void register_all() {
  benchmark::RegisterBenchmark("machine", machine)->Iterations(1)->Repetitions(1);
  for (const GemmShape& shape : kGemmShapes) {
    for (const Index m : kGemmRows) {
      if (!runs(m, shape)) continue;
      const auto name = label("linear", {{"m", m}, {"n", shape.n}, {"k", shape.k}});
      benchmark::RegisterBenchmark(name.c_str(), linear<float>, m, shape);
    }
  }
  for (const Index m : {1, 64, 256}) {
    const GemmShape shape{1024, 1024};
    const auto name = label("linear_double", {{"m", m}, {"n", shape.n}, {"k", shape.k}});
    benchmark::RegisterBenchmark(name.c_str(), linear<double>, m, shape);
  }
  for (const ExpertShape& shape : kExpertShapes) {
    for (const Index tokens : kExpertTokens) {
      if (tokens * shape.hidden * shape.width > Index{3} << 31) continue;
      const auto name = label("expert", {{"tokens", tokens}, {"hidden", shape.hidden}, {"width", shape.width}});
      benchmark::RegisterBenchmark(name.c_str(), expert<float>, tokens, shape);
    }
  }
  for (const Index sequence : {128, 512, 2048}) {
    for (const Index head_dim : {32, 64, 128}) {
      const auto name = label("attention", {{"sequence", sequence}, {"heads", 4}, {"head_dim", head_dim}});
      benchmark::RegisterBenchmark(name.c_str(), attention<float>, sequence, 4, 4, head_dim, Format::fp32);
    }
  }
  for (const Index past : {128, 1024, 8192}) {
    benchmark::RegisterBenchmark(label("decode_attention_rows", {{"past", past}}).c_str(), decode_attention, past, 0);
    benchmark::RegisterBenchmark(label("decode_attention_paged", {{"past", past}}).c_str(), decode_attention, past, 16);
  }
  benchmark::RegisterBenchmark("attention_grouped/sequence:2048/heads:8/kv_heads:2/head_dim:64", attention<float>, 2048,
                               8, 2, 64, Format::fp32);
  benchmark::RegisterBenchmark("attention_exact/sequence:512/heads:4/head_dim:64", attention<double>, 512, 4, 4, 64,
                               Format::exact);
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
    const std::string suffix = "/" + std::string(to_string(format));
    benchmark::RegisterBenchmark(("rms_norm" + suffix).c_str(), norm, format);
    benchmark::RegisterBenchmark(("rope" + suffix).c_str(), rope, format);
    benchmark::RegisterBenchmark(("swiglu" + suffix).c_str(), swiglu, format);
    benchmark::RegisterBenchmark(("add" + suffix).c_str(), add, format);
  }
  for (const Index experts : {4, 16, 64}) {
    benchmark::RegisterBenchmark(label("route", {{"experts", experts}, {"top_k", 2}}).c_str(), route, experts, 2);
  }
  benchmark::RegisterBenchmark("gather_rows", gather);
  benchmark::RegisterBenchmark("combine", combine);
  benchmark::RegisterBenchmark("embed", embed);
  register_model_ops();
}

}  // namespace
}  // namespace shardproof::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  shardproof::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
