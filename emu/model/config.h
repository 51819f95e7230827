// The model: what a Hugging Face config.json says of a decoder-only Mixture-of-Experts transformer.
//
// Each layer is RMSNorm, causal grouped-query attention with rotary embeddings, residual, RMSNorm, a router over
// `num_experts` SwiGLU experts of which `top_k` serve each token, residual; then a final RMSNorm and the output head.
#pragma once

#include <cstdint>
#include <string>

namespace shardproof {

struct ModelConfig {
  std::int64_t hidden_size = 0;   ///< width of the residual stream
  std::int64_t num_layers = 0;    ///< num_hidden_layers
  std::int64_t num_heads = 0;     ///< num_attention_heads (query heads)
  std::int64_t num_kv_heads = 0;  ///< num_key_value_heads; divides num_heads; defaults to num_heads
  std::int64_t head_dim = 0;      ///< defaults to hidden_size / num_heads; even
  std::int64_t expert_width = 0;  ///< moe_intermediate_size, else intermediate_size
  std::int64_t num_experts = 0;   ///< num_local_experts, num_experts, n_routed_experts
  std::int64_t top_k = 0;         ///< num_experts_per_tok; 1 <= top_k <= num_experts
  std::int64_t vocab_size = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 1e6;           ///< top level, or inside rope_parameters / rope_scaling
  bool norm_topk_prob = true;        ///< renormalise the chosen experts' weights (Mixtral always does)
  bool tie_word_embeddings = false;  ///< the output head is the embedding
  std::string dtype = "bfloat16";    ///< torch_dtype / dtype: the format weights are kept in
  std::string model_type = "mixtral";

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace shardproof
