// The sizes that rows of the tables of tensors and taps are made of, as functions of the model and one of its layers.
#pragma once

#include <cstdint>

#include "emu/model/config.h"

namespace shardproof::sizes {

inline std::int64_t one(const ModelConfig& /*model*/, const LayerSpec& /*layer*/) {
  return 1;
}
inline std::int64_t hidden(const ModelConfig& model, const LayerSpec& /*layer*/) {
  return model.hidden_size;
}
inline std::int64_t vocabulary(const ModelConfig& model, const LayerSpec& /*layer*/) {
  return model.vocab_size;
}
/// Of all query heads.
inline std::int64_t q_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.heads * layer.attention.head_dim;
}
/// Of all key or value heads.
inline std::int64_t kv_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.kv_heads * layer.attention.head_dim;
}
inline std::int64_t experts(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.num_experts;
}
inline std::int64_t top_k(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.top_k;
}
inline std::int64_t intermediate(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.intermediate_size;
}

}  // namespace shardproof::sizes
