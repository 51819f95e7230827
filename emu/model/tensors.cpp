#include "emu/model/tensors.h"

#include <fmt/format.h>

#include <array>

#include "emu/model/internal/sizes.h"

namespace shardproof {
namespace {

constexpr std::array<TensorRow, kWeights> kTensorTable{{
    {.weight = Weight::embedding,
     .scope = TensorScope::first_stage,
     .name = "model.embed_tokens.weight",
     .rows = sizes::vocabulary,
     .cols = sizes::hidden,
     .row_split = Split::vocabulary,
     .kind = WeightKind::embedding,
     .part = ParameterPart::embedding},
    {.weight = Weight::attention_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.input_layernorm.weight",
     .rows = sizes::one,
     .cols = sizes::hidden,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_q,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_proj.weight",
     .rows = sizes::q_width,
     .cols = sizes::hidden,
     .row_split = Split::q_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_k,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.k_proj.weight",
     .rows = sizes::kv_width,
     .cols = sizes::hidden,
     .row_split = Split::kv_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_v,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.v_proj.weight",
     .rows = sizes::kv_width,
     .cols = sizes::hidden,
     .row_split = Split::kv_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_output,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.o_proj.weight",
     .rows = sizes::hidden,
     .cols = sizes::q_width,
     .col_split = Split::q_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::moe_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.post_attention_layernorm.weight",
     .rows = sizes::one,
     .cols = sizes::hidden,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::router,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.block_sparse_moe.gate.weight",
     .rows = sizes::experts,
     .cols = sizes::hidden,
     .part = ParameterPart::router},
    {.weight = Weight::expert_gate,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
     .rows = sizes::intermediate,
     .cols = sizes::hidden,
     .row_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_up,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
     .rows = sizes::intermediate,
     .cols = sizes::hidden,
     .row_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_down,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
     .rows = sizes::hidden,
     .cols = sizes::intermediate,
     .col_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::final_norm,
     .scope = TensorScope::last_stage,
     .name = "model.norm.weight",
     .rows = sizes::one,
     .cols = sizes::hidden,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::head,
     .scope = TensorScope::last_stage,
     .name = "lm_head.weight",
     .rows = sizes::vocabulary,
     .cols = sizes::hidden,
     .row_split = Split::vocabulary,
     .part = ParameterPart::head},
}};

/// The name with its indices in place.
std::string weight_name(std::string_view pattern, int layer, int expert) {
  return fmt::format(fmt::runtime(pattern), fmt::arg("layer", layer), fmt::arg("expert", expert));
}

const LayerSpec& layer_of(const ModelConfig& model, int layer) {
  static const LayerSpec kNone;
  return layer < 0 ? kNone : model.layers[layer];
}

}  // namespace

std::span<const TensorRow> tensor_table() {
  return kTensorTable;
}

WeightSpec weight_spec(const ModelConfig& model, Weight weight, int layer, int expert) {
  const bool tied = weight == Weight::head && model.tie_word_embeddings;
  const TensorRow& row = tensor_row(tied ? Weight::embedding : weight);
  const LayerSpec& spec = layer_of(model, layer);
  return {.name = weight_name(row.name, layer, expert),
          .rows = row.rows(model, spec),
          .cols = row.cols(model, spec),
          .row_split = row.row_split,
          .col_split = row.col_split,
          .layer = layer,
          .expert = expert,
          .kind = row.kind,
          .weight = weight};
}

std::vector<WeightSpec> all_weights(const ModelConfig& model) {
  std::vector<WeightSpec> specs;
  for_each_weight(model, [&](WeightSpec spec) { specs.push_back(std::move(spec)); });
  return specs;
}

std::vector<TensorCount> tensor_counts(const ModelConfig& model) {
  std::vector<TensorCount> counts;
  for (const TensorRow& row : tensor_table()) {
    if (row.scope == TensorScope::first_stage || row.scope == TensorScope::last_stage) {
      if (row.weight == Weight::head && model.tie_word_embeddings) continue;
      const LayerSpec& none = layer_of(model, -1);
      counts.push_back({.row = &row, .rows = row.rows(model, none), .cols = row.cols(model, none)});
      continue;
    }
    for (int kind = 0; kind < static_cast<int>(model.layers.kinds().size()); ++kind) {
      const LayerSpec& spec = model.layers.kinds()[static_cast<std::size_t>(kind)];
      counts.push_back({.row = &row,
                        .kind = kind,
                        .rows = row.rows(model, spec),
                        .cols = row.cols(model, spec),
                        .layers = model.layers.count_of(kind),
                        .experts = row.scope == TensorScope::expert ? spec.feed_forward.num_experts : 1});
    }
  }
  return counts;
}

std::int64_t& ParameterCount::operator[](ParameterPart part) {
  switch (part) {
    case ParameterPart::embedding:
      return embedding;
    case ParameterPart::attention:
      return attention;
    case ParameterPart::norms:
      return norms;
    case ParameterPart::router:
      return router;
    case ParameterPart::experts:
      return experts;
    case ParameterPart::head:
      break;
  }
  return head;
}

ParameterCount model_parameters(const ModelConfig& model) {
  ParameterCount parameters;
  for (const TensorCount& count : tensor_counts(model)) parameters[count.row->part] += count.elements();
  return parameters;
}

}  // namespace shardproof
