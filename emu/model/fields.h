// The one list of a model's fields. Whoever loads, saves, hashes or compares models walks it, so that none of them can
// forget a field.
//
//   visit_fields(model, [](const FieldInfo& field, auto& value) { ... });
//
// Order: the model's sizes, those of each kind of layer, vocabulary and epsilon, the settings of each kind of layer,
// the tied head. Hashes depend on it: a new field goes behind the others of its group, with the value that leaves
// Mixtral as it is as its default.
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
  bool from_family = false;                   ///< no key of a config says it: the family does
  bool added_later = false;  ///< its default adds nothing to a hash, so that hashes from before the field hold
};

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
inline constexpr FieldInfo kQueryKeyNorm{.key = "query_key_norm", .from_family = true, .added_later = true};
inline constexpr FieldInfo kTied{.key = "tie_word_embeddings"};

}  // namespace fields

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
    visit(fields::kRopeTheta, kind.attention.rope_theta);
    visit(fields::kNormTopkProb, kind.feed_forward.norm_topk_prob);
    visit(fields::kQueryKeyNorm, kind.attention.query_key_norm);
  });
  visit(fields::kTied, model.tie_word_embeddings);
}

}  // namespace shardproof
