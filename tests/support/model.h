// Models whose layers are all alike, for tests.
#pragma once

#include <cstdint>

#include "emu/model/config.h"

namespace shardproof::testing {

struct ModelSizes {
  std::int64_t hidden_size = 0;
  std::int64_t layers = 1;
  std::int64_t heads = 1;
  std::int64_t kv_heads = 1;
  std::int64_t head_dim = 2;
  std::int64_t intermediate_size = 1;
  std::int64_t experts = 1;
  std::int64_t top_k = 1;
  std::int64_t vocab_size = 0;
};

inline ModelConfig uniform_model(const ModelSizes& sizes) {
  const LayerSpec layer{
      .attention = {.heads = sizes.heads, .kv_heads = sizes.kv_heads, .head_dim = sizes.head_dim},
      .feed_forward = {
          .intermediate_size = sizes.intermediate_size, .num_experts = sizes.experts, .top_k = sizes.top_k}};
  return {.hidden_size = sizes.hidden_size, .layers = {sizes.layers, layer}, .vocab_size = sizes.vocab_size};
}

/// No two of its weights have the same number of elements by chance, and 3 experts do not divide by 2.
inline ModelConfig small_model() {
  return uniform_model({.hidden_size = 12,
                        .layers = 2,
                        .heads = 4,
                        .kv_heads = 2,
                        .head_dim = 4,
                        .intermediate_size = 6,
                        .experts = 3,
                        .top_k = 2,
                        .vocab_size = 20});
}

}  // namespace shardproof::testing
