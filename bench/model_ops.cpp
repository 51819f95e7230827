#include "bench/model_ops.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bench/ops_shapes.h"
#include "bench/ops_timing.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/expert.h"
#include "ops/latent.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace shardproof::bench {
namespace {

using ops::Format;
using ops::Index;
using ops::Matrix;

constexpr Index kTokens = 4096;

/// DeepSeek-V3's heads: a key of 128 and 64 turned elements, a value of 128.
void latent_attention(benchmark::State& state, Index sequence) {
  constexpr Index kHeads = 4, kKey = 192, kValue = 128;
  const auto q = filled<float>(sequence, kHeads * kKey, 1), k = filled<float>(sequence, kHeads * kKey, 2),
             v = filled<float>(sequence, kHeads * kValue, 3);
  const std::vector<std::int64_t> offsets{0, sequence};
  Matrix<float> out(sequence, kHeads * kValue);
  const ops::AttentionOptions<float> options{.head_dim = kKey, .value_dim = kValue};
  time_flops<float>(
      state, ops::attention_cost(ops::causal_pairs(offsets), sequence, kHeads, kHeads, kKey, kValue, sizeof(float)),
      [&] { ops::attention<float>(q, k, v, offsets, options, Format::fp32, out); });
}

/// DeepSeek-V3's heads in the absorbed form: latents of 512 and 64 turned elements, of which a rank has some heads.
constexpr ops::LatentHead kLatentHead{.still = 128, .turned = 64, .value_dim = 128};
constexpr Index kRank = 512;

/// All of the absorbed form of `rows` tokens after `past` others of their sequence: both products and what is between.
void absorbed_attention(benchmark::State& state, Index rows, Index past, Index heads) {
  const Index keys = past + rows, width = kRank + kLatentHead.turned;
  const auto q = filled<float>(rows, heads * kLatentHead.key_dim(), 1);
  const auto weight = filled<float>(heads * (kLatentHead.still + kLatentHead.value_dim), kRank, 2);
  const auto latents = filled<float>(keys, width, 3);
  const std::vector<ops::AttentionSpan> spans{{.rows = rows, .past = past}};
  Matrix<float> absorbed(rows, heads * width), weighed(rows, heads * kRank), out(rows, heads * kLatentHead.value_dim);
  const double pairs = static_cast<double>(rows) * static_cast<double>(2 * past + rows + 1) / 2;
  const ops::Cost cost =
      ops::absorb_queries_cost(rows, heads, kRank, kLatentHead, sizeof(float)) +
      ops::attend_to_latents_cost(pairs, rows, keys, heads, kRank, kLatentHead.turned, sizeof(float)) +
      ops::expand_context_cost(rows, heads, kRank, kLatentHead, sizeof(float));
  time_flops<float>(state, cost, [&] {
    ops::absorb_queries<float>(q, weight, kLatentHead, absorbed);
    ops::attend_to_latents<float>(absorbed, latents, spans, 0, kLatentHead, 0, Format::fp32, weighed);
    ops::expand_context<float>(weighed, weight, kLatentHead, out);
  });
}

/// gpt-oss's heads: a window and sinks.
void window_attention(benchmark::State& state, Index sequence, Index window) {
  constexpr Index kHeads = 8, kKvHeads = 1, kHeadDim = 64;
  const auto q = filled<float>(sequence, kHeads * kHeadDim, 1), k = filled<float>(sequence, kKvHeads * kHeadDim, 2),
             v = filled<float>(sequence, kKvHeads * kHeadDim, 3), sinks = filled<float>(1, kHeads, 4);
  const std::vector<std::int64_t> offsets{0, sequence};
  Matrix<float> out(sequence, kHeads * kHeadDim);
  const ops::AttentionOptions<float> options{.head_dim = kHeadDim, .window = window, .sinks = sinks.span()};
  time_flops<float>(state,
                    ops::attention_cost(ops::causal_pairs(offsets, window), sequence, kHeads, kKvHeads, kHeadDim,
                                        kHeadDim, sizeof(float)),
                    [&] { ops::attention<float>(q, k, v, offsets, options, Format::fp32, out); });
}

/// One token of one sequence, whose cache no cache of the machine holds.
void long_cache(benchmark::State& state, Index past) {
  constexpr Index kHeads = 8, kKvHeads = 2, kHeadDim = 128;
  const Index keys = past + 1;
  const auto q = filled<float>(1, kHeads * kHeadDim, 1), k = filled<float>(keys, kKvHeads * kHeadDim, 2),
             v = filled<float>(keys, kKvHeads * kHeadDim, 3);
  const std::vector<ops::AttentionSpan> spans{{.rows = 1, .past = past}};
  Matrix<float> out(1, kHeads * kHeadDim);
  const ops::Cost cost =
      ops::attention_cost(static_cast<double>(keys), 1, kHeads, 0, kHeadDim, kHeadDim, sizeof(float)) +
      ops::attention_cost(0, keys, 0, kKvHeads, kHeadDim, kHeadDim, sizeof(float));
  time_flops<float>(state, cost,
                    [&] { ops::attention<float>(q, k, v, spans, 0, {.head_dim = kHeadDim}, Format::fp32, out); });
}

/// DeepSeek-V3's router: sigmoid scores with a bias for the choice, the 4 best of 8 groups of 256 experts.
void route_in_groups(benchmark::State& state, Index experts) {
  constexpr Index kTopK = 8;
  const auto logits = filled<float>(kTokens, experts, 1), bias = filled<float>(1, experts, 2);
  Matrix<std::int32_t> ids(kTokens, kTopK);
  Matrix<float> scores(kTokens, experts), weights(kTokens, kTopK);
  const ops::RouteOptions<float> options{
      .top_k = kTopK, .sigmoid = true, .selection_bias = bias.span(), .groups = 8, .top_groups = 4, .scale = 2.5};
  time_bytes(state, ops::route_cost(kTokens, experts, kTopK, sizeof(float)), [&] {
    ops::selection_scores<float>(logits, options, Format::fp32, scores);
    ops::choose_experts<float>(scores, options, ids);
    ops::route_weights<float>(logits, ids, options, Format::fp32, weights);
  });
}

void clamped_swiglu(benchmark::State& state, Index cols) {
  const auto gate = filled<float>(kTokens, cols, 1), up = filled<float>(kTokens, cols, 2);
  Matrix<float> out = filled<float>(kTokens, cols, 3);
  time_bytes(state, ops::swiglu_cost(kTokens, cols, sizeof(float)),
             [&] { ops::clamped_swiglu<float>(gate, up, 7, Format::fp32, out); });
}

void layer_norm(benchmark::State& state, Index cols) {
  const auto x = filled<float>(kTokens, cols, 1), weight = filled<float>(1, cols, 2), bias = filled<float>(1, cols, 3);
  Matrix<float> y = filled<float>(kTokens, cols, 4);
  time_bytes(state, ops::layer_norm_cost(kTokens, cols, sizeof(float)),
             [&] { ops::layer_norm<float>(x, weight.span(), bias.span(), 1e-5, Format::fp32, y); });
}

/// gpt-oss's expert: biases, and clamped.
void expert_with_bias(benchmark::State& state, Index tokens, Index hidden, Index width) {
  const auto x = filled<float>(tokens, hidden, 1), gate = filled<float>(width, hidden, 2),
             up = filled<float>(width, hidden, 3), down = filled<float>(hidden, width, 4),
             biases = filled<float>(3, std::max(hidden, width), 5);
  Matrix<float> y(tokens, hidden);
  const auto first = [](std::span<const float> row, Index count) { return row.first(static_cast<std::size_t>(count)); };
  const ops::ExpertOptions<float> options{.gate_bias = first(biases.row(0), width),
                                          .up_bias = first(biases.row(1), width),
                                          .down_bias = first(biases.row(2), hidden),
                                          .swiglu_limit = 7};
  time_flops<float>(state, ops::expert_cost(tokens, hidden, width, sizeof(float)),
                    [&] { ops::expert<float>(x, gate, up, down, Format::fp32, y, {}, options); });
}

void linear_with_bias(benchmark::State& state, Index m, Index n, Index k) {
  const auto x = filled<float>(m, k, 1), w = filled<float>(n, k, 2), bias = filled<float>(1, n, 3);
  Matrix<float> y(m, n);
  time_flops<float>(state, ops::linear_cost(m, n, k, sizeof(float)), [&] {
    ops::linear<float>(x, w, y);
    ops::add_bias<float>(y, bias.span());
  });
}

}  // namespace

void register_model_ops() {
  const auto add = [](const std::string& name, auto function, auto... arguments) {
    benchmark::RegisterBenchmark(name.c_str(), function, arguments...);
  };
  for (const Index sequence : {512, 2048}) {
    add(label("latent_attention", {{"sequence", sequence}, {"heads", 4}, {"key", 192}, {"value", 128}}),
        latent_attention, sequence);
  }
  // A token whose latents no cache of the machine holds, with the heads that a rank of tp 128, 32, 8 and 1 has.
  for (const Index heads : {1, 4, 16, 128}) {
    add(label("absorbed_decode", {{"past", 65535}, {"heads", heads}, {"rank", kRank}}), absorbed_attention, 1, 65535,
        heads);
  }
  add(label("absorbed_prefill", {{"sequence", 512}, {"heads", 4}, {"rank", kRank}}), absorbed_attention, 512, 0, 4);
  add("window_attention/sequence:2048/window:128/heads:8/kv_heads:1/head_dim:64", window_attention, 2048, 128);
  add("long_cache/past:131071/heads:8/kv_heads:2/head_dim:128", long_cache, 131071);
  add("route_in_groups/experts:256/top_k:8/groups:8/top_groups:4", route_in_groups, 256);
  add("clamped_swiglu/cols:2880", clamped_swiglu, 2880);
  add("layer_norm/cols:4096", layer_norm, 4096);
  for (const Index tokens : {1, 16, 256}) {
    add(label("expert_with_bias", {{"tokens", tokens}, {"hidden", 2880}, {"width", 2880}}), expert_with_bias, tokens,
        2880, 2880);
  }
  for (const Index m : {8, 256}) {
    add(label("linear_with_bias", {{"m", m}, {"n", 1024}, {"k", 2880}}), linear_with_bias, m, 1024, 2880);
  }
}

}  // namespace shardproof::bench
