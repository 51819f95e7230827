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
    {.weight = Weight::attention_norm_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.input_layernorm.bias",
     .rows = sizes::one,
     .cols = sizes::norm_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_q_latent,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_a_proj.weight",
     .rows = sizes::q_rank,
     .cols = sizes::hidden,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_q_latent_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_a_proj.bias",
     .rows = sizes::one,
     .cols = sizes::q_latent_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_q_latent_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_a_layernorm.weight",
     .rows = sizes::one,
     .cols = sizes::q_rank,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_q,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_proj.weight",
     .rows = sizes::q_width,
     .cols = sizes::q_input,
     .row_split = Split::q_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_q_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_proj.bias",
     .rows = sizes::one,
     .cols = sizes::q_bias,
     .col_split = Split::q_heads,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_k,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.k_proj.weight",
     .rows = sizes::direct_k_width,
     .cols = sizes::hidden,
     .row_split = Split::kv_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_k_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.k_proj.bias",
     .rows = sizes::one,
     .cols = sizes::k_bias,
     .col_split = Split::kv_heads,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_v,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.v_proj.weight",
     .rows = sizes::direct_v_width,
     .cols = sizes::hidden,
     .row_split = Split::kv_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_v_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.v_proj.bias",
     .rows = sizes::one,
     .cols = sizes::v_bias,
     .col_split = Split::kv_heads,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_kv_latent,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight",
     .rows = sizes::kv_latent,
     .cols = sizes::hidden,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_kv_latent_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias",
     .rows = sizes::one,
     .cols = sizes::kv_latent_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_kv_latent_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.kv_a_layernorm.weight",
     .rows = sizes::one,
     .cols = sizes::kv_rank,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_kv,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.kv_b_proj.weight",
     .rows = sizes::kv_from_latent,
     .cols = sizes::kv_rank,
     .row_split = Split::q_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_q_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.q_norm.weight",
     .rows = sizes::one,
     .cols = sizes::q_norm,
     .col_split = Split::q_norm,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_k_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.k_norm.weight",
     .rows = sizes::one,
     .cols = sizes::k_norm,
     .col_split = Split::kv_norm,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::attention_sinks,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.sinks",
     .rows = sizes::one,
     .cols = sizes::sinks,
     .col_split = Split::q_heads,
     .kind = WeightKind::sink,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_output,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.o_proj.weight",
     .rows = sizes::hidden,
     .cols = sizes::context_width,
     .col_split = Split::q_heads,
     .part = ParameterPart::attention},
    {.weight = Weight::attention_output_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.self_attn.o_proj.bias",
     .rows = sizes::one,
     .cols = sizes::output_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::attention},
    {.weight = Weight::moe_norm,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.post_attention_layernorm.weight",
     .rows = sizes::one,
     .cols = sizes::hidden,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::moe_norm_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.post_attention_layernorm.bias",
     .rows = sizes::one,
     .cols = sizes::norm_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::norms},
    {.weight = Weight::router,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.block_sparse_moe.gate.weight",
     .rows = sizes::experts,
     .cols = sizes::hidden,
     .part = ParameterPart::router},
    {.weight = Weight::router_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.block_sparse_moe.gate.bias",
     .rows = sizes::one,
     .cols = sizes::router_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::router},
    {.weight = Weight::router_selection_bias,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.block_sparse_moe.gate.e_score_correction_bias",
     .rows = sizes::one,
     .cols = sizes::selection_bias,
     .kind = WeightKind::selection_bias,
     .part = ParameterPart::router},
    {.weight = Weight::mlp_gate,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.mlp.gate_proj.weight",
     .rows = sizes::mlp,
     .cols = sizes::hidden,
     .row_split = Split::mlp_size,
     .part = ParameterPart::mlp},
    {.weight = Weight::mlp_up,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.mlp.up_proj.weight",
     .rows = sizes::mlp,
     .cols = sizes::hidden,
     .row_split = Split::mlp_size,
     .part = ParameterPart::mlp},
    {.weight = Weight::mlp_down,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.mlp.down_proj.weight",
     .rows = sizes::mlp_hidden,
     .cols = sizes::mlp,
     .col_split = Split::mlp_size,
     .part = ParameterPart::mlp},
    {.weight = Weight::shared_gate,
     .scope = TensorScope::layer,
     .name = "model.layers.{layer}.mlp.shared_expert_gate.weight",
     .rows = sizes::one_shared_gate,
     .cols = sizes::hidden,
     .part = ParameterPart::mlp},
    {.weight = Weight::expert_gate,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
     .rows = sizes::intermediate,
     .cols = sizes::hidden,
     .row_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_gate_bias,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.bias",
     .rows = sizes::one,
     .cols = sizes::expert_bias,
     .col_split = Split::intermediate_size,
     .kind = WeightKind::gate_bias,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_up,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
     .rows = sizes::intermediate,
     .cols = sizes::hidden,
     .row_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_up_bias,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.bias",
     .rows = sizes::one,
     .cols = sizes::expert_bias,
     .col_split = Split::intermediate_size,
     .kind = WeightKind::gate_bias,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_down,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
     .rows = sizes::hidden,
     .cols = sizes::intermediate,
     .col_split = Split::intermediate_size,
     .part = ParameterPart::experts},
    {.weight = Weight::expert_down_bias,
     .scope = TensorScope::expert,
     .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.bias",
     .rows = sizes::one,
     .cols = sizes::expert_output_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::experts},
    {.weight = Weight::final_norm,
     .scope = TensorScope::last_stage,
     .name = "model.norm.weight",
     .rows = sizes::one,
     .cols = sizes::hidden,
     .kind = WeightKind::norm,
     .part = ParameterPart::norms},
    {.weight = Weight::final_norm_bias,
     .scope = TensorScope::last_stage,
     .name = "model.norm.bias",
     .rows = sizes::one,
     .cols = sizes::norm_bias,
     .kind = WeightKind::bias,
     .part = ParameterPart::norms},
    {.weight = Weight::head,
     .scope = TensorScope::last_stage,
     .name = "lm_head.weight",
     .rows = sizes::vocabulary,
     .cols = sizes::hidden,
     .row_split = Split::vocabulary,
     .part = ParameterPart::head},
    {.weight = Weight::head_bias,
     .scope = TensorScope::last_stage,
     .name = "lm_head.bias",
     .rows = sizes::one,
     .cols = sizes::head_bias,
     .col_split = Split::vocabulary,
     .kind = WeightKind::bias,
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

bool has_weight(const ModelConfig& model, Weight weight, int layer) {
  const TensorRow& row = tensor_row(weight);
  const LayerSpec& spec = layer_of(model, layer);
  return row.rows(model, spec) > 0 && row.cols(model, spec) > 0;
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
      if (!has_weight(model, row.weight)) continue;
      counts.push_back({.row = &row, .rows = row.rows(model, none), .cols = row.cols(model, none)});
      continue;
    }
    for (int kind = 0; kind < static_cast<int>(model.layers.kinds().size()); ++kind) {
      const LayerSpec& spec = model.layers.kinds()[static_cast<std::size_t>(kind)];
      if (row.rows(model, spec) == 0 || row.cols(model, spec) == 0) continue;
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
    case ParameterPart::mlp:
      return mlp;
    case ParameterPart::head:
      break;
  }
  return head;
}

bool is_quantised(const ModelConfig& model, Weight weight) {
  const Quantisation& quantisation = model.quantisation;
  const TensorRow& row = tensor_row(weight);
  if (quantisation.format == QuantisedFormat::none || row.kind != WeightKind::linear) return false;
  switch (row.part) {
    case ParameterPart::attention:
      return quantisation.attention;
    case ParameterPart::mlp:
      return quantisation.mlp && weight != Weight::shared_gate;
    case ParameterPart::experts:
      return quantisation.experts;
    default:
      return false;
  }
}

ParameterCount model_parameters(const ModelConfig& model) {
  ParameterCount parameters;
  for (const TensorCount& count : tensor_counts(model)) parameters[count.row->part] += count.elements();
  return parameters;
}

}  // namespace shardproof
