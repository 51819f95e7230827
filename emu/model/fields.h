// The one list of a model's fields. Whoever loads, saves, hashes or compares models walks it, so that none of them can
// forget a field.
//
//   visit_fields(model, [](const FieldInfo& field, auto& value) { ... });
//
// Order: the model's sizes, those of each kind of layer, vocabulary and epsilon, the settings of each kind of layer,
// the tied head; then what was added later, again of each kind of layer and of the model. Hashes depend on it: a new
// field goes behind the others of its group, with the value that leaves Mixtral as it is as its default.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "emu/model/config.h"

namespace shardproof {

struct FieldInfo {
  std::string_view key;                       ///< in a config.json, as it is saved
  std::array<std::string_view, 2> aliases{};  ///< other families' names of it; empty ones are none
  std::int64_t most = 0;                      ///< of an integer
  double least_number = 0, most_number = 0;   ///< of a number
  std::string_view needed{};                  ///< why there must be one; empty where there is a default
  bool from_family = false;  ///< read and saved by the family (families/), for which one key may say several fields
  bool added_later = false;  ///< its default adds nothing to a hash, so that hashes from before the field hold
  double later_default = 0;  ///< that default
};

/// A field that the family reads, added after hashes were recorded.
constexpr FieldInfo later(std::string_view key, double value = 0) {
  return {.key = key, .from_family = true, .added_later = true, .later_default = value};
}

inline constexpr std::int64_t kMaxWidth = 1 << 20;
inline constexpr std::int64_t kMaxCount = 1 << 16;
inline constexpr std::int64_t kMaxLayers = 10'000;
inline constexpr std::int64_t kMaxVocabulary = 1 << 24;

namespace fields {

inline constexpr FieldInfo kHiddenSize{
    .key = "hidden_size", .most = kMaxWidth, .needed = "the width of the residual stream is needed"};
inline constexpr FieldInfo kLayers{.key = "num_hidden_layers",
                                   .aliases = {"num_layers"},
                                   .most = kMaxLayers,
                                   .needed = "the number of layers is needed"};
inline constexpr FieldInfo kHeads{
    .key = "num_attention_heads", .most = kMaxCount, .needed = "the number of query heads is needed"};
inline constexpr FieldInfo kKvHeads{.key = "num_key_value_heads", .most = kMaxCount};
inline constexpr FieldInfo kHeadDim{.key = "head_dim", .most = kMaxWidth};
inline constexpr FieldInfo kIntermediateSize{
    .key = "intermediate_size", .most = kMaxWidth, .needed = "the width of an expert is needed"};
inline constexpr FieldInfo kExperts{.key = "num_local_experts",
                                    .aliases = {"num_experts", "n_routed_experts"},
                                    .most = kMaxCount,
                                    .needed = "the number of experts of a layer is needed"};
inline constexpr FieldInfo kTopK{.key = "num_experts_per_tok",
                                 .aliases = {"experts_per_token", "moe_topk"},
                                 .most = kMaxCount,
                                 .needed = "the number of experts that serve a token is needed"};
inline constexpr FieldInfo kVocabulary{
    .key = "vocab_size", .most = kMaxVocabulary, .needed = "the size of the vocabulary is needed"};
inline constexpr FieldInfo kNormEps{
    .key = "rms_norm_eps", .aliases = {"rms_norm_epsilon"}, .least_number = 0, .most_number = 1};
inline constexpr FieldInfo kRopeTheta{
    .key = "rope_theta", .aliases = {"rotary_emb_base"}, .least_number = 1, .most_number = 1e12};
inline constexpr FieldInfo kNormTopkProb{.key = "norm_topk_prob"};
inline constexpr FieldInfo kQueryKeyNorm = later("query_key_norm");
inline constexpr FieldInfo kTied{.key = "tie_word_embeddings"};
inline constexpr FieldInfo kValueDim = later("v_head_dim");
inline constexpr FieldInfo kRopeType = later("rope_type");
inline constexpr FieldInfo kRopeDim = later("rotary_dim");
inline constexpr FieldInfo kRopeInterleaved = later("rope_interleave");
inline constexpr FieldInfo kRopeFactor = later("factor", 1);
inline constexpr FieldInfo kRopeContext = later("original_max_position_embeddings");
inline constexpr FieldInfo kRopeLow = later("low_freq_factor", 1);
inline constexpr FieldInfo kRopeHigh = later("high_freq_factor", 4);
inline constexpr FieldInfo kRopeFast = later("beta_fast", 32);
inline constexpr FieldInfo kRopeSlow = later("beta_slow", 1);
inline constexpr FieldInfo kRopeTruncate = later("truncate", 1);
inline constexpr FieldInfo kRopeAmplitude = later("attention_factor", 1);
inline constexpr FieldInfo kRopePairFactors = later("short_factor");
inline constexpr FieldInfo kQkvBias = later("qkv_bias");
inline constexpr FieldInfo kOutputBias = later("attention_output_bias");
inline constexpr FieldInfo kWindow = later("sliding_window");
inline constexpr FieldInfo kSinks = later("attention_sinks");
inline constexpr FieldInfo kAttentionMultiplier = later("attention_multiplier");
inline constexpr FieldInfo kRopeScoreScale = later("mscale_all_dim");
inline constexpr FieldInfo kClip = later("clip_qkv");
inline constexpr FieldInfo kQueryRank = later("q_lora_rank");
inline constexpr FieldInfo kLatentRank = later("kv_lora_rank");
inline constexpr FieldInfo kSharedSize = later("shared_expert_intermediate_size");
inline constexpr FieldInfo kSharedGate = later("shared_expert_gate");
inline constexpr FieldInfo kScoring = later("scoring_func");
inline constexpr FieldInfo kSelectionBias = later("e_score_correction_bias");
inline constexpr FieldInfo kGroups = later("n_group", 1);
inline constexpr FieldInfo kTopGroups = later("topk_group", 1);
inline constexpr FieldInfo kRoutedScale = later("routed_scaling_factor", 1);
inline constexpr FieldInfo kRouterBias = later("router_bias");
inline constexpr FieldInfo kExpertBias = later("mlp_bias");
inline constexpr FieldInfo kSwigluLimit = later("swiglu_limit");
inline constexpr FieldInfo kRouterJitter = later("router_jitter_noise");
inline constexpr FieldInfo kWeightBlock = later("weight_block_size");
inline constexpr FieldInfo kLayerNorm = later("layer_norm");
inline constexpr FieldInfo kHeadBias = later("lm_head_bias");
inline constexpr FieldInfo kEmbeddingMultiplier = later("embedding_multiplier", 1);
inline constexpr FieldInfo kResidualMultiplier = later("residual_multiplier", 1);
inline constexpr FieldInfo kLogitsScaling = later("logits_scaling", 1);

}  // namespace fields

template <class Attention, class Visit>
void visit_attention(Attention& attention, const Visit& visit) {
  visit(fields::kValueDim, attention.v_head_dim);
  visit(fields::kQkvBias, attention.qkv_bias);
  visit(fields::kOutputBias, attention.output_bias);
  visit(fields::kWindow, attention.sliding_window);
  visit(fields::kSinks, attention.sinks);
  visit(fields::kAttentionMultiplier, attention.attention_multiplier);
  visit(fields::kQueryRank, attention.q_lora_rank);
  visit(fields::kLatentRank, attention.kv_lora_rank);
  visit(fields::kClip, attention.clip_qkv);
}

template <class Rope, class Visit>
void visit_rope(Rope& rope, const Visit& visit) {
  visit(fields::kRopeType, rope.type);
  visit(fields::kRopeDim, rope.dim);
  visit(fields::kRopeInterleaved, rope.interleaved);
  visit(fields::kRopeFactor, rope.factor);
  visit(fields::kRopeContext, rope.original_context);
  visit(fields::kRopeLow, rope.low_freq_factor);
  visit(fields::kRopeHigh, rope.high_freq_factor);
  visit(fields::kRopeFast, rope.beta_fast);
  visit(fields::kRopeSlow, rope.beta_slow);
  visit(fields::kRopeTruncate, rope.truncate);
  visit(fields::kRopeAmplitude, rope.amplitude);
  visit(fields::kRopeScoreScale, rope.mscale_all_dim);
  visit(fields::kRopePairFactors, rope.pair_factors);
}

template <class FeedForward, class Visit>
void visit_feed_forward(FeedForward& feed_forward, const Visit& visit) {
  visit(fields::kSharedSize, feed_forward.shared_intermediate_size);
  visit(fields::kSharedGate, feed_forward.shared_gate);
  visit(fields::kScoring, feed_forward.scoring);
  visit(fields::kSelectionBias, feed_forward.selection_bias);
  visit(fields::kGroups, feed_forward.groups);
  visit(fields::kTopGroups, feed_forward.top_groups);
  visit(fields::kRoutedScale, feed_forward.routed_scaling_factor);
  visit(fields::kRouterBias, feed_forward.router_bias);
  visit(fields::kExpertBias, feed_forward.expert_bias);
  visit(fields::kSwigluLimit, feed_forward.swiglu_limit);
  visit(fields::kRouterJitter, feed_forward.router_jitter);
}

/// visit(info, value) for every field, by reference. `Model` is ModelConfig or const ModelConfig; a visitor that
/// changes the number of layers resizes the list.
template <class Model, class Visit>
void visit_fields(Model& model, const Visit& visit) {
  const auto each_kind = [&](const auto& of_kind) {
    if constexpr (std::is_const_v<Model>) {
      for (const LayerSpec& kind : model.layers.kinds()) of_kind(kind);
    } else {
      model.layers.edit(of_kind);
    }
  };
  visit(fields::kHiddenSize, model.hidden_size);
  std::int64_t layers = model.layers.size();
  visit(fields::kLayers, layers);
  if constexpr (!std::is_const_v<Model>) {
    if (layers != model.layers.size()) model.layers.resize(layers);
  }
  each_kind([&](auto& kind) {
    visit(fields::kHeads, kind.attention.heads);
    visit(fields::kKvHeads, kind.attention.kv_heads);
    visit(fields::kHeadDim, kind.attention.head_dim);
    visit(fields::kIntermediateSize, kind.feed_forward.intermediate_size);
    visit(fields::kExperts, kind.feed_forward.num_experts);
    visit(fields::kTopK, kind.feed_forward.top_k);
  });
  visit(fields::kVocabulary, model.vocab_size);
  visit(fields::kNormEps, model.rms_norm_eps);
  each_kind([&](auto& kind) {
    visit(fields::kRopeTheta, kind.attention.rope.theta);
    visit(fields::kNormTopkProb, kind.feed_forward.norm_topk_prob);
    visit(fields::kQueryKeyNorm, kind.attention.query_key_norm);
  });
  visit(fields::kTied, model.tie_word_embeddings);
  each_kind([&](auto& kind) {
    visit_attention(kind.attention, visit);
    visit_rope(kind.attention.rope, visit);
    visit_feed_forward(kind.feed_forward, visit);
  });
  visit(fields::kWeightBlock, model.weight_block);
  visit(fields::kLayerNorm, model.layer_norm);
  visit(fields::kHeadBias, model.head_bias);
  visit(fields::kEmbeddingMultiplier, model.embedding_multiplier);
  visit(fields::kResidualMultiplier, model.residual_multiplier);
  visit(fields::kLogitsScaling, model.logits_scaling);
}

}  // namespace shardproof
