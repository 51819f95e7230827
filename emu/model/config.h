// The model: what a Hugging Face config.json says of a decoder-only Mixture-of-Experts transformer, layer by layer.
//
// Each layer is a norm, attention, residual, a norm, a feed-forward, residual; then a final norm and the output head.
// What a layer's attention and feed-forward are is data: LayerSpec, filled by the model's family (families/family.h).
// A field added here is added to the one list of fields (fields.h), by which models are loaded, saved, hashed and
// compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace shardproof {

/// Causal grouped-query attention with rotary embeddings: query head h reads key-value head h / (heads / kv_heads).
struct AttentionSpec {
  std::int64_t heads = 0;     ///< query heads
  std::int64_t kv_heads = 0;  ///< divides heads
  std::int64_t head_dim = 0;  ///< even
  double rope_theta = 1e6;
  /// RMSNorm inside each head of queries and keys, before the rotary embedding (Qwen3). No program computes it yet.
  bool query_key_norm = false;

  bool operator==(const AttentionSpec&) const = default;
};

/// A router over `num_experts` SwiGLU experts, of which `top_k` serve each token.
struct FeedForwardSpec {
  std::int64_t intermediate_size = 0;  ///< of one expert
  std::int64_t num_experts = 0;
  std::int64_t top_k = 0;      ///< 1 <= top_k <= num_experts
  bool norm_topk_prob = true;  ///< renormalise the chosen experts' weights

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
  std::string dtype = "bfloat16";    ///< torch_dtype / dtype: the format weights are kept in
  std::string model_type = "mixtral";

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace shardproof
