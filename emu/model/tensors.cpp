#include "emu/model/tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace shardproof::registry {
namespace {

std::string layer_name(int layer, std::string_view rest) {
  return fmt::format("model.layers.{}.{}.weight", layer, rest);
}

std::string expert_name(int layer, int expert, std::string_view matrix) {
  return fmt::format("model.layers.{}.block_sparse_moe.experts.{}.{}.weight", layer, expert, matrix);
}

}  // namespace

WeightSpec embedding(const ModelConfig& model) {
  return {.name = "model.embed_tokens.weight",
          .rows = model.vocab_size,
          .cols = model.hidden_size,
          .row_split = Split::vocabulary,
          .kind = WeightKind::embedding};
}

WeightSpec final_norm(const ModelConfig& model) {
  return {.name = "model.norm.weight", .rows = 1, .cols = model.hidden_size, .kind = WeightKind::norm};
}

WeightSpec head(const ModelConfig& model) {
  if (model.tie_word_embeddings) return embedding(model);
  return {
      .name = "lm_head.weight", .rows = model.vocab_size, .cols = model.hidden_size, .row_split = Split::vocabulary};
}

WeightSpec attention_norm(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "input_layernorm"),
          .rows = 1,
          .cols = model.hidden_size,
          .layer = layer,
          .kind = WeightKind::norm};
}

WeightSpec attention_q(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "self_attn.q_proj"),
          .rows = model.num_heads * model.head_dim,
          .cols = model.hidden_size,
          .row_split = Split::q_heads,
          .layer = layer};
}

WeightSpec attention_k(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "self_attn.k_proj"),
          .rows = model.num_kv_heads * model.head_dim,
          .cols = model.hidden_size,
          .row_split = Split::kv_heads,
          .layer = layer};
}

WeightSpec attention_v(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "self_attn.v_proj"),
          .rows = model.num_kv_heads * model.head_dim,
          .cols = model.hidden_size,
          .row_split = Split::kv_heads,
          .layer = layer};
}

WeightSpec attention_output(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "self_attn.o_proj"),
          .rows = model.hidden_size,
          .cols = model.num_heads * model.head_dim,
          .col_split = Split::q_heads,
          .layer = layer};
}

WeightSpec moe_norm(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "post_attention_layernorm"),
          .rows = 1,
          .cols = model.hidden_size,
          .layer = layer,
          .kind = WeightKind::norm};
}

WeightSpec router(const ModelConfig& model, int layer) {
  return {.name = layer_name(layer, "block_sparse_moe.gate"),
          .rows = model.num_experts,
          .cols = model.hidden_size,
          .layer = layer};
}

WeightSpec expert_gate(const ModelConfig& model, int layer, int expert) {
  return {.name = expert_name(layer, expert, "w1"),
          .rows = model.expert_width,
          .cols = model.hidden_size,
          .row_split = Split::expert_width,
          .layer = layer,
          .expert = expert};
}

WeightSpec expert_up(const ModelConfig& model, int layer, int expert) {
  return {.name = expert_name(layer, expert, "w3"),
          .rows = model.expert_width,
          .cols = model.hidden_size,
          .row_split = Split::expert_width,
          .layer = layer,
          .expert = expert};
}

WeightSpec expert_down(const ModelConfig& model, int layer, int expert) {
  return {.name = expert_name(layer, expert, "w2"),
          .rows = model.hidden_size,
          .cols = model.expert_width,
          .col_split = Split::expert_width,
          .layer = layer,
          .expert = expert};
}

std::vector<WeightSpec> all(const ModelConfig& model) {
  std::vector<WeightSpec> specs{embedding(model)};
  for (int layer = 0; layer < model.num_layers; ++layer) {
    for (auto make : {attention_norm, attention_q, attention_k, attention_v, attention_output, moe_norm, router}) {
      specs.push_back(make(model, layer));
    }
    for (int expert = 0; expert < model.num_experts; ++expert) {
      for (auto make : {expert_gate, expert_up, expert_down}) specs.push_back(make(model, layer, expert));
    }
  }
  specs.push_back(final_norm(model));
  if (!model.tie_word_embeddings) specs.push_back(head(model));
  return specs;
}

WeightSpec find(const ModelConfig& model, std::string_view name) {
  for (WeightSpec& spec : all(model)) {
    if (spec.name == name) return std::move(spec);
  }
  throw std::out_of_range(fmt::format("the model has no weight named '{}'", name));
}

}  // namespace shardproof::registry
