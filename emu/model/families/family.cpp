#include "emu/model/families/family.h"

#include <algorithm>
#include <cctype>
#include <string>

namespace shardproof {
namespace {

// The defaults are those of the configuration_*.py of Transformers 5.24.
const Family kFamilies[] = {
    {.model_type = "mixtral",
     .architecture = "MixtralFor",
     .layer = {.attention = {.kv_heads = 8}},
     .rms_norm_eps = 1e-5,
     .window = Window::every_layer,
     .names = TensorNames::block_sparse_moe},
    {.model_type = "qwen3_moe",
     .also = {"qwen3_vl_moe_text"},
     .architecture = "Qwen3MoeFor",
     .layer = {.attention = {.kv_heads = 4, .rope = {.theta = 1e4}, .query_key_norm = QueryKeyNorm::head},
               .feed_forward = {.norm_topk_prob = false}},
     .mixture = Mixture::sparse_step,
     .window = Window::with_switch,
     .attention_bias = AttentionBias::all_by_key,
     .norm_topk_by_key = true,
     .moe_intermediate_size = true},
    {.model_type = "qwen3",
     .also = {"qwen3_vl_text"},
     .architecture = "Qwen3For",
     .layer =
         {.attention = {.kv_heads = 32, .head_dim = 128, .rope = {.theta = 1e4}, .query_key_norm = QueryKeyNorm::head}},
     .mixture = Mixture::no_layer,
     .window = Window::later_layers,
     .attention_bias = AttentionBias::all_by_key},
    {.model_type = "deepseek_v3",
     .also = {"kimi_k2"},
     .architecture = "DeepseekV3For",
     .layer = {.attention = {.rope = {.theta = 1e4, .dim = 64, .interleaved = true},
                             .q_lora_rank = 1536,
                             .kv_lora_rank = 512},
               .feed_forward = {.top_k = 8,
                                .scoring = Scoring::sigmoid,
                                .selection_bias = true,
                                .groups = 8,
                                .top_groups = 4,
                                .routed_scaling_factor = 2.5}},
     .mixture = Mixture::after_first,
     .attention_bias = AttentionBias::all_by_key,
     .norm_topk_by_key = true,
     .moe_intermediate_size = true,
     .counts_shared_experts = true,
     .first_dense = 3,
     .skips_prediction_layers = true},
    {.model_type = "deepseek_v2",
     .architecture = "DeepseekV2For",
     .layer = {.attention = {.rope = {.theta = 1e4, .dim = 64, .interleaved = true},
                             .q_lora_rank = 1536,
                             .kv_lora_rank = 512},
               .feed_forward = {.norm_topk_prob = false}},
     .mixture = Mixture::after_first,
     .attention_bias = AttentionBias::all_by_key,
     .norm_topk_by_key = true,
     .moe_intermediate_size = true,
     .counts_shared_experts = true,
     .shared_experts = 2},
    {.model_type = "glm4_moe",
     .architecture = "Glm4MoeFor",
     .layer = {.attention = {.kv_heads = 8, .rope = {.theta = 1e4}},
               .feed_forward = {.top_k = 8, .scoring = Scoring::sigmoid, .selection_bias = true}},
     .rms_norm_eps = 1e-5,
     .mixture = Mixture::after_first,
     .attention_bias = AttentionBias::qkv_by_key,
     .norm_topk_by_key = true,
     .moe_intermediate_size = true,
     .counts_shared_experts = true,
     .first_dense = 1,
     .qk_norm_by_key = true,
     .partial_rotary_factor = 0.5,
     .skips_prediction_layers = true},
    {.model_type = "gpt_oss",
     .architecture = "GptOssFor",
     .layer = {.attention = {.kv_heads = 8,
                             .head_dim = 64,
                             .rope = {.type = RopeType::yarn,
                                      .theta = 1.5e5,
                                      .factor = 32,
                                      .original_context = 4096,
                                      .truncate = false,
                                      .amplitude = 1.3465735902799727},  // 0.1 ln 32 + 1
                             .qkv_bias = true,
                             .output_bias = true,
                             .sliding_window = 128,
                             .sinks = true},
               .feed_forward = {.top_k = 4, .router_bias = true, .expert_bias = true, .swiglu_limit = 7}},
     .rms_norm_eps = 1e-5,
     .window = Window::alternating,
     .attention_bias = AttentionBias::all_by_key,
     .names = TensorNames::stacked_columns},
    {.model_type = "qwen2_moe",
     .architecture = "Qwen2MoeFor",
     .layer = {.attention = {.kv_heads = 16, .rope = {.theta = 1e4}, .qkv_bias = true},
               .feed_forward = {.norm_topk_prob = false, .shared_intermediate_size = 5632, .shared_gate = true}},
     .mixture = Mixture::sparse_step,
     .window = Window::early_layers,
     .attention_bias = AttentionBias::qkv,
     .norm_topk_by_key = true,
     .moe_intermediate_size = true,
     .shared_name = "shared_expert"},
    {.model_type = "olmoe",
     .architecture = "OlmoeFor",
     .layer = {.attention = {.rope = {.theta = 1e4}, .query_key_norm = QueryKeyNorm::full},
               .feed_forward = {.norm_topk_prob = false}},
     .rms_norm_eps = 1e-5,
     .attention_bias = AttentionBias::all_by_key,
     .norm_topk_by_key = true,
     .clips_qkv = true},
    {.model_type = "phimoe",
     .architecture = "PhiMoEFor",
     .layer = {.attention = {.kv_heads = 8},
               .feed_forward =
                   {.top_k = 2, .norm_topk_prob = false, .scoring = Scoring::sparsemixer, .router_jitter = 0.01}},
     .rms_norm_eps = 1e-5,
     .window = Window::every_layer,
     .attention_bias = AttentionBias::all_by_key,
     .names = TensorNames::block_sparse_moe,
     .layer_norm = true},
    {.model_type = "granitemoe",
     .architecture = "GraniteMoeFor",
     .layer = {.attention = {.rope = {.theta = 1e4}}},
     .attention_bias = AttentionBias::all_by_key,
     .names = TensorNames::stacked_linear,
     .multipliers = true},
    {.model_type = "llama",
     .architecture = "LlamaFor",
     .layer = {.attention = {.rope = {.theta = 1e4}}},
     .mixture = Mixture::no_layer,
     .attention_bias = AttentionBias::all_by_key},
    {.model_type = "mistral",
     .architecture = "MistralFor",
     .layer = {.attention = {.kv_heads = 8, .rope = {.theta = 1e4}, .sliding_window = 4096}},
     .mixture = Mixture::no_layer,
     .window = Window::every_layer},
    {.model_type = "qwen2",
     .architecture = "Qwen2For",
     .layer = {.attention = {.kv_heads = 32, .rope = {.theta = 1e4}, .qkv_bias = true}},
     .mixture = Mixture::no_layer,
     .window = Window::later_layers,
     .attention_bias = AttentionBias::qkv},
};

}  // namespace

std::span<const Family> families() {
  return kFamilies;
}

std::string_view family_names() {
  static const std::string kNames = [] {
    std::string names;
    for (const Family& family : kFamilies) {
      names.append(names.empty() ? "\"" : ", \"").append(family.model_type).append("\"");
    }
    return names;
  }();
  return kNames;
}

const Family* find_family(std::string_view model_type) {
  const auto found = std::ranges::find_if(kFamilies, [&](const Family& family) {
    return family.model_type == model_type ||
           (!model_type.empty() && std::ranges::find(family.also, model_type) != family.also.end());
  });
  return found == std::end(kFamilies) ? nullptr : &*found;
}

const Family* family_of_architecture(std::string_view architecture) {
  // Published files and the class in Transformers do not always agree on capitals (PhiMoE, Phimoe).
  const auto same = [](char a, char b) {
    return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
  };
  const auto found = std::ranges::find_if(kFamilies, [&](const Family& family) {
    return std::ranges::equal(architecture.substr(0, family.architecture.size()), family.architecture, same);
  });
  return found == std::end(kFamilies) ? nullptr : &*found;
}

}  // namespace shardproof
