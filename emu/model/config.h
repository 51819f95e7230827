// The model: what a Hugging Face config.json says of a decoder-only transformer, layer by layer.
//
// Each layer is a norm, attention, residual, a norm, a feed-forward, residual; then a final norm and the output head.
// What a layer's attention and feed-forward are is data: LayerSpec, filled by the model's family (families/family.h).
// A field added here is added to the one list of fields (fields.h), by which models are loaded, saved, hashed and
// compared.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "emu/model/quantisation.h"

namespace shardproof {

/// How the angles of a rotary embedding are stretched beyond the context that the model was trained on. The formulas
/// are those of Hugging Face's modeling_rope_utils; d is the number of elements that turn, L the original context.
enum class RopeType : std::int8_t {
  plain,     ///< pair i turns by theta^(-2i/d) a position
  linear,    ///< by 1/factor of that
  llama3,    ///< by 1/factor of that where the wavelength exceeds L / low_freq_factor, by all of it below
             ///< L / high_freq_factor, and by a mean of both that is linear in L / wavelength between (Llama 3.1)
  yarn,      ///< by a mean of both that is linear in i, between the pairs that turn beta_slow and beta_fast times in L
             ///< positions (Peng et al. 2023)
  longrope,  ///< by 1 over a factor of its own each pair (Ding et al. 2024), in sequences of at most L tokens; those of
             ///< longer ones, for which implementations differ, no program computes
};

/// A rotary position embedding (Su et al. 2021).
struct RopeSpec {
  RopeType type = RopeType::plain;
  double theta = 1e6;
  /// Elements of a head that turn; 0 is all of them. The first ones, with latent attention the last ones.
  std::int64_t dim = 0;
  /// Elements 2i and 2i + 1 turn together (DeepSeek); otherwise i and i + d/2.
  bool interleaved = false;
  double factor = 1;
  std::int64_t original_context = 0;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;  ///< yarn's two pairs are rounded outwards to whole ones
  double amplitude = 1;  ///< what cosines and sines are multiplied by (yarn's attention factor, Phi's mscale)
  std::vector<double> pair_factors = {};  ///< longrope's, of each pair
  /// Yarn with latent attention: the scores are multiplied by (0.1 mscale_all_dim ln(factor) + 1)^2.
  double mscale_all_dim = 0;

  bool operator==(const RopeSpec&) const = default;
};

inline std::string_view to_string(RopeType type) {
  constexpr std::string_view kNames[] = {"default", "linear", "llama3", "yarn", "longrope"};
  return kNames[static_cast<std::size_t>(type)];
}

/// What an RMSNorm of queries and keys before the rotary embedding is taken over.
enum class QueryKeyNorm : std::int8_t {
  none,
  head,  ///< each head, all with one weight (Qwen3)
  full,  ///< the whole width of the projection (OLMoE)
};

inline std::string_view to_string(QueryKeyNorm norm) {
  constexpr std::string_view kNames[] = {"none", "head", "full"};
  return kNames[static_cast<std::size_t>(norm)];
}

/// Causal grouped-query attention with rotary embeddings: query head h reads key-value head h / (heads / kv_heads).
///
/// Latent attention (DeepSeek; kv_lora_rank > 0) makes its queries by way of q_lora_rank values (directly where that is
/// 0), its keys and values by way of kv_lora_rank. The first head_dim - rope.dim elements of a head of q and k come
/// from there; the rest turn, and those of k are one for all heads. It has as many key-value heads as query heads.
struct AttentionSpec {
  std::int64_t heads = 0;       ///< query heads
  std::int64_t kv_heads = 0;    ///< divides heads
  std::int64_t head_dim = 0;    ///< of queries and keys; even
  std::int64_t v_head_dim = 0;  ///< of values; 0 is head_dim
  RopeSpec rope;
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  bool qkv_bias = false;  ///< with latent attention of the two latents
  bool output_bias = false;
  /// Keys that a token sees, itself included; 0 is all before it.
  std::int64_t sliding_window = 0;
  /// A logit a head that takes part in the softmax and has no value (gpt-oss).
  bool sinks = false;
  /// Scores are q . k times this; 0 is 1 / sqrt(head_dim), and what score_scale() says.
  double attention_multiplier = 0;
  /// Above 0, queries and keys, after their norm, and values are clamped to it (OLMoE).
  double clip_qkv = 0;
  std::int64_t q_lora_rank = 0;
  std::int64_t kv_lora_rank = 0;

  bool latent() const { return kv_lora_rank > 0; }
  std::int64_t value_dim() const { return v_head_dim > 0 ? v_head_dim : head_dim; }
  /// What q . k is multiplied by.
  double score_scale() const {
    if (attention_multiplier > 0) return attention_multiplier;
    const double stretched = rope.type == RopeType::yarn && latent() && rope.mscale_all_dim > 0 && rope.factor > 1
                                 ? 0.1 * rope.mscale_all_dim * std::log(rope.factor) + 1
                                 : 1;
    return stretched * stretched / std::sqrt(static_cast<double>(head_dim));
  }
  std::int64_t rope_dim() const { return rope.dim > 0 ? rope.dim : head_dim; }
  bool operator==(const AttentionSpec&) const = default;
};

/// Elements that a cache keeps of a token in such a layer, on a rank with so many key-value heads: keys and values,
/// with latent attention the latent and the key that all heads share, whole on every rank.
inline std::int64_t cached_elements(const AttentionSpec& attention, std::int64_t kv_heads) {
  if (attention.latent()) return attention.kv_lora_rank + attention.rope.dim;
  return kv_heads * (attention.head_dim + attention.value_dim());
}

/// How the router's logits become scores. The k largest are chosen.
enum class Scoring : std::int8_t {
  softmax,
  sigmoid,  ///< of each logit by itself (DeepSeek-V3)
  /// Of each of the two chosen by itself, a softmax over the logits that are near it: those that (m - l) / max(|l|, m)
  /// puts within twice the jitter of m, the chosen one's own; the second without the first (Phi-3.5-MoE; Liu et al.
  /// 2024, "GRIN").
  sparsemixer,
};

inline std::string_view to_string(Scoring scoring) {
  constexpr std::string_view kNames[] = {"softmax", "sigmoid", "sparsemixer"};
  return kNames[static_cast<std::size_t>(scoring)];
}

/// A router over `num_experts` gated MLPs, of which `top_k` serve each token; without experts, one MLP for all.
struct FeedForwardSpec {
  std::int64_t intermediate_size = 0;  ///< of one expert, or of the one MLP
  std::int64_t num_experts = 0;        ///< 0: dense
  std::int64_t top_k = 0;              ///< 1 <= top_k <= num_experts; 0 where dense
  bool norm_topk_prob = true;          ///< renormalise the chosen experts' weights
  /// Width of an MLP that serves every token beside its experts; 0 is none.
  std::int64_t shared_intermediate_size = 0;
  bool shared_gate = false;  ///< its output times sigmoid(x w), one value a token (Qwen2-MoE)
  Scoring scoring = Scoring::softmax;
  /// A value an expert that is added to its score for the choice, and is no part of its weight.
  bool selection_bias = false;
  /// The experts lie in so many groups, and only those of the top_groups best are chosen from. A group is as good as
  /// its two best experts together, with softmax as its best one.
  std::int64_t groups = 1;
  std::int64_t top_groups = 1;
  double routed_scaling_factor = 1;  ///< times the weights
  bool router_bias = false;
  bool expert_bias = false;
  /// Above 0, gate and up are clamped to it, and the activation is (up + 1) gate sigmoid(1.702 gate) (gpt-oss).
  double swiglu_limit = 0;
  double router_jitter = 0;  ///< of sparsemixer

  bool dense() const { return num_experts == 0; }
  /// Of the MLP that serves every token; 0 is none.
  std::int64_t mlp_size() const { return dense() ? intermediate_size : shared_intermediate_size; }
  bool operator==(const FeedForwardSpec&) const = default;
};

struct LayerSpec {
  AttentionSpec attention;
  FeedForwardSpec feed_forward;

  bool operator==(const LayerSpec&) const = default;
};

/// The layers of a model in order. Layers that are alike share one spec, their *kind*: a model of a thousand equal
/// layers has one, and what depends on the spec alone is computed once a kind.
///
/// Example: LayerList(3, dense) followed by push_back(moe) twice has 5 layers of 2 kinds; kind_of(3) is 1.
class LayerList {
 public:
  LayerList() = default;
  LayerList(std::int64_t count, const LayerSpec& spec) : kinds_{spec}, kind_of_(static_cast<std::size_t>(count), 0) {}

  std::int64_t size() const { return static_cast<std::int64_t>(kind_of_.size()); }
  const LayerSpec& operator[](std::int64_t layer) const { return kinds_[static_cast<std::size_t>(kind_of(layer))]; }

  int kind_of(std::int64_t layer) const { return kind_of_[static_cast<std::size_t>(layer)]; }
  const std::vector<LayerSpec>& kinds() const { return kinds_; }
  /// How many layers are of that kind.
  std::int64_t count_of(int kind) const {
    std::int64_t count = 0;
    for (const int other : kind_of_) count += other == kind ? 1 : 0;
    return count;
  }

  void push_back(const LayerSpec& spec) {
    int kind = 0;
    while (kind < static_cast<int>(kinds_.size()) && !(kinds_[static_cast<std::size_t>(kind)] == spec)) ++kind;
    if (kind == static_cast<int>(kinds_.size())) kinds_.push_back(spec);
    kind_of_.push_back(kind);
  }
  /// Changing it changes every layer of that kind.
  LayerSpec& kind(int index) { return kinds_[static_cast<std::size_t>(index)]; }
  /// Changes the spec of every layer: edit(LayerSpec&), called once a kind.
  template <class Edit>
  void edit(const Edit& edit) {
    for (LayerSpec& kind : kinds_) edit(kind);
  }
  /// Keeps the first `count` layers; what is missing is like the last kind.
  void resize(std::int64_t count) {
    if (kinds_.empty()) kinds_.emplace_back();
    kind_of_.resize(static_cast<std::size_t>(count), static_cast<int>(kinds_.size()) - 1);
  }

  /// Layer by layer.
  bool operator==(const LayerList& other) const {
    if (size() != other.size()) return false;
    for (std::int64_t i = 0; i < size(); ++i) {
      if (!((*this)[i] == other[i])) return false;
    }
    return true;
  }

 private:
  std::vector<LayerSpec> kinds_;
  std::vector<int> kind_of_;  // by layer
};

struct ModelConfig {
  std::int64_t hidden_size = 0;  ///< width of the residual stream
  LayerList layers;
  std::int64_t vocab_size = 0;
  double rms_norm_eps = 1e-5;
  bool tie_word_embeddings = false;  ///< the output head is the embedding
  bool layer_norm = false;           ///< LayerNorm with a bias in place of RMSNorm (Phi-3.5-MoE)
  bool head_bias = false;
  double embedding_multiplier = 1;  ///< times the embedding (Granite), as the next times what each block adds
  double residual_multiplier = 1;
  double logits_scaling = 1;  ///< logits are divided by it
  /// Tokens that a sequence may have; 0: not stated. Nothing that is computed depends on it.
  std::int64_t max_position_embeddings = 0;
  /// Quantised weights are stored in blocks of so many columns, of fp8 of as many rows too, each with a scale of its
  /// own, which no rank's slice may cut; 0: they are not. At smaller widths blocks are as much smaller as no slice
  /// cuts.
  std::int64_t weight_block = 0;
  Quantisation quantisation = {};
  std::string dtype = "bfloat16";  ///< torch_dtype / dtype: the format weights are kept in
  std::string model_type = "mixtral";

  /// What the layers with experts have; of a model without experts, what all have.
  const FeedForwardSpec& experts() const {
    for (const LayerSpec& kind : layers.kinds()) {
      if (!kind.feed_forward.dense()) return kind.feed_forward;
    }
    return layers[0].feed_forward;
  }
  bool dense() const { return experts().dense(); }
  /// Layers with experts.
  std::int64_t moe_layers() const {
    std::int64_t count = 0;
    for (std::size_t kind = 0; kind < layers.kinds().size(); ++kind) {
      if (!layers.kinds()[kind].feed_forward.dense()) count += layers.count_of(static_cast<int>(kind));
    }
    return count;
  }
  bool operator==(const ModelConfig&) const = default;
};

}  // namespace shardproof
