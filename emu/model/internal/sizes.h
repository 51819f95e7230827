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
inline std::int64_t scaled_embedding(const ModelConfig& model, const LayerSpec& /*layer*/) {
  return model.embedding_multiplier != 1 ? model.hidden_size : 0;
}
/// Of all query heads.
inline std::int64_t q_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.heads * layer.attention.head_dim;
}
/// Of all key heads.
inline std::int64_t k_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.kv_heads * layer.attention.head_dim;
}
/// Of all value heads.
inline std::int64_t v_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.kv_heads * layer.attention.value_dim();
}
inline std::int64_t q_heads(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.heads;
}
/// Of all query heads' values.
inline std::int64_t context_width(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.heads * layer.attention.value_dim();
}

// What some layers do not have is 0 wide there: then it is no tensor of theirs.

inline std::int64_t direct_k_width(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.latent() ? 0 : k_width(model, layer);
}
inline std::int64_t direct_v_width(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.latent() ? 0 : v_width(model, layer);
}
/// What queries are made of.
inline std::int64_t q_input(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.q_lora_rank > 0 ? layer.attention.q_lora_rank : model.hidden_size;
}
inline std::int64_t q_rank(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.q_lora_rank;
}
inline std::int64_t kv_rank(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.kv_lora_rank;
}
/// The latent of keys and values, and behind it the key that all heads share.
inline std::int64_t kv_latent(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.latent() ? layer.attention.kv_lora_rank + layer.attention.rope.dim : 0;
}
/// The key that all heads share.
inline std::int64_t shared_key(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.latent() ? layer.attention.rope.dim : 0;
}
/// Of all heads' keys, less what they share, and values.
inline std::int64_t kv_from_latent(const ModelConfig& /*model*/, const LayerSpec& layer) {
  const AttentionSpec& attention = layer.attention;
  return attention.latent() ? attention.heads * (attention.head_dim - attention.rope.dim + attention.value_dim()) : 0;
}
/// Of all heads' queries of latents, and of what they weigh of these.
inline std::int64_t absorbed_q_width(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.heads * kv_latent(model, layer);
}
inline std::int64_t latent_heads(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.latent() ? layer.attention.heads : 0;
}
inline std::int64_t latent_context_width(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.heads * kv_rank(model, layer);
}
inline std::int64_t q_norm(const ModelConfig& model, const LayerSpec& layer) {
  const QueryKeyNorm norm = layer.attention.query_key_norm;
  if (norm == QueryKeyNorm::full) return q_width(model, layer);
  return norm == QueryKeyNorm::head ? layer.attention.head_dim : 0;
}
inline std::int64_t k_norm(const ModelConfig& model, const LayerSpec& layer) {
  const QueryKeyNorm norm = layer.attention.query_key_norm;
  if (norm == QueryKeyNorm::full) return k_width(model, layer);
  return norm == QueryKeyNorm::head ? layer.attention.head_dim : 0;
}
/// Queries and keys are more than a rotated product: what lies between is held on its own.
inline bool in_steps(const AttentionSpec& attention) {
  return attention.latent() || attention.query_key_norm != QueryKeyNorm::none || attention.qkv_bias ||
         attention.rope.dim > 0 || attention.rope.interleaved || attention.rope.amplitude != 1;
}
inline std::int64_t q_projection(const ModelConfig& model, const LayerSpec& layer) {
  return in_steps(layer.attention) ? q_width(model, layer) : 0;
}
inline std::int64_t k_projection(const ModelConfig& model, const LayerSpec& layer) {
  return in_steps(layer.attention) ? direct_k_width(model, layer) : 0;
}
inline std::int64_t q_normed(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.query_key_norm != QueryKeyNorm::none ? q_width(model, layer) : 0;
}
inline std::int64_t k_normed(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.query_key_norm != QueryKeyNorm::none ? k_width(model, layer) : 0;
}
/// Of queries and of keys, where their norm is over all heads.
inline std::int64_t squares(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.query_key_norm == QueryKeyNorm::full ? 2 : 0;
}
inline bool has_direct_bias(const AttentionSpec& attention) {
  return attention.qkv_bias && !attention.latent();
}
inline std::int64_t q_bias(const ModelConfig& model, const LayerSpec& layer) {
  return has_direct_bias(layer.attention) ? q_width(model, layer) : 0;
}
inline std::int64_t k_bias(const ModelConfig& model, const LayerSpec& layer) {
  return has_direct_bias(layer.attention) ? k_width(model, layer) : 0;
}
inline std::int64_t v_bias(const ModelConfig& model, const LayerSpec& layer) {
  return has_direct_bias(layer.attention) ? v_width(model, layer) : 0;
}
/// With latent attention the latents have the biases.
inline std::int64_t q_latent_bias(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.qkv_bias && layer.attention.latent() ? q_rank(model, layer) : 0;
}
inline std::int64_t kv_latent_bias(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.qkv_bias ? kv_latent(model, layer) : 0;
}
inline std::int64_t output_bias(const ModelConfig& model, const LayerSpec& layer) {
  return layer.attention.output_bias ? model.hidden_size : 0;
}
inline std::int64_t sinks(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.attention.sinks ? layer.attention.heads : 0;
}
inline std::int64_t norm_bias(const ModelConfig& model, const LayerSpec& /*layer*/) {
  return model.layer_norm ? model.hidden_size : 0;
}
inline std::int64_t head_bias(const ModelConfig& model, const LayerSpec& /*layer*/) {
  return model.head_bias ? model.vocab_size : 0;
}
inline std::int64_t router_bias(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.router_bias ? layer.feed_forward.num_experts : 0;
}
inline std::int64_t selection_bias(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.selection_bias ? layer.feed_forward.num_experts : 0;
}
/// Of the MLP that serves every token: the one of a dense layer, or what stands beside experts.
inline std::int64_t mlp(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.mlp_size();
}
/// The hidden size where there is such an MLP.
inline std::int64_t mlp_hidden(const ModelConfig& model, const LayerSpec& layer) {
  return mlp(model, layer) > 0 ? model.hidden_size : 0;
}
inline std::int64_t shared_gate(const ModelConfig& model, const LayerSpec& layer) {
  return layer.feed_forward.shared_gate ? model.hidden_size : 0;
}
inline std::int64_t one_shared_gate(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.shared_gate ? 1 : 0;
}
/// The hidden size where experts and an MLP for all are added up.
inline std::int64_t shared_hidden(const ModelConfig& model, const LayerSpec& layer) {
  return layer.feed_forward.dense() ? 0 : mlp_hidden(model, layer);
}
/// The hidden size where the MLP beside the experts has a gate.
inline std::int64_t gated_hidden(const ModelConfig& model, const LayerSpec& layer) {
  return layer.feed_forward.shared_gate ? model.hidden_size : 0;
}
/// The hidden size where there are experts.
inline std::int64_t routed_hidden(const ModelConfig& model, const LayerSpec& layer) {
  return layer.feed_forward.dense() ? 0 : model.hidden_size;
}
inline std::int64_t expert_bias(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.expert_bias ? layer.feed_forward.intermediate_size : 0;
}
inline std::int64_t expert_output_bias(const ModelConfig& model, const LayerSpec& layer) {
  return layer.feed_forward.expert_bias ? model.hidden_size : 0;
}
inline std::int64_t experts(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.num_experts;
}
inline std::int64_t router_scores(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.scoring == Scoring::sigmoid ? layer.feed_forward.num_experts : 0;
}
inline std::int64_t top_k(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.top_k;
}
/// Of one expert.
inline std::int64_t intermediate(const ModelConfig& /*model*/, const LayerSpec& layer) {
  return layer.feed_forward.dense() ? 0 : layer.feed_forward.intermediate_size;
}

}  // namespace shardproof::sizes
