// The table of tensors: every weight of the model once, with its name in a checkpoint, its shape, how a plan splits it,
// how its values are made, and what it counts as. Slices, layouts, checkpoints, parameter counts and estimates of
// memory are folds over it.
//
// A weight is a row-major matrix [out, in] as a checkpoint stores it; a norm is [1, hidden].
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/model/config.h"

namespace shardproof {

/// A row of the table, in program order.
enum class Weight {
  embedding,
  attention_norm,
  attention_norm_bias,
  attention_q_latent,  ///< latent attention: what queries are made by way of
  attention_q_latent_bias,
  attention_q_latent_norm,
  attention_q,
  attention_q_bias,
  attention_k,
  attention_k_bias,
  attention_v,
  attention_v_bias,
  attention_kv_latent,  ///< latent attention: what keys and values are made by way of, and the key that heads share
  attention_kv_latent_bias,
  attention_kv_latent_norm,
  attention_kv,  ///< latent attention: each head's key and value from there
  attention_q_norm,
  attention_k_norm,
  attention_sinks,
  attention_output,
  attention_output_bias,
  moe_norm,
  moe_norm_bias,
  router,
  router_bias,
  router_selection_bias,
  mlp_gate,  ///< of a dense layer's MLP, or of the one beside the experts
  mlp_up,
  mlp_down,
  shared_gate,
  expert_gate,
  expert_gate_bias,
  expert_up,
  expert_up_bias,
  expert_down,
  expert_down_bias,
  final_norm,
  final_norm_bias,
  head,
  head_bias,
};
inline constexpr int kWeights = static_cast<int>(Weight::head_bias) + 1;

/// What a dim of a weight is split by. Layout (emu/plan/layout.h) says which part of it a rank holds.
enum class Split {
  none,               ///< replicated
  q_heads,            ///< query heads x elements of each, over tp
  kv_heads,           ///< key/value heads x elements of each, over tp; replicated where tp exceeds them
  q_norm,             ///< as q_heads where it is a norm over all of them; of one inside each head, replicated
  kv_norm,            ///< the same of key heads
  vocabulary,         ///< over tp
  intermediate_size,  ///< of an expert, over etp
  mlp_size,           ///< of the MLP for all tokens, over tp
};

/// How a weight's values are made when no checkpoint is given (emu/weights/store.h).
enum class WeightKind { linear, embedding, norm, bias, gate_bias, sink, selection_bias };

/// A checkpoint stores it as [cols].
constexpr bool is_vector(WeightKind kind) {
  return kind != WeightKind::linear && kind != WeightKind::embedding;
}

/// Whether the model's quantisation stores it (emu/model/quantisation.h).
bool is_quantised(const ModelConfig& model, Weight weight);

/// What a weight's elements count as.
enum class ParameterPart { embedding, attention, norms, router, experts, mlp, head };

/// How often the model has it, and which rank holds it: the first or last stage, each layer, each expert of a layer.
enum class TensorScope { first_stage, layer, expert, last_stage };

/// A layer of which it has no rows or no columns has no such weight.
struct TensorRow {
  Weight weight{};
  TensorScope scope{};
  /// {layer} and {expert} stand for their indices. In a checkpoint of Mixtral; emu/weights/checkpoint_names.h has those
  /// of others.
  std::string_view name;
  std::int64_t (*rows)(const ModelConfig& model, const LayerSpec& layer) = nullptr;
  std::int64_t (*cols)(const ModelConfig& model, const LayerSpec& layer) = nullptr;
  Split row_split = Split::none;
  Split col_split = Split::none;
  WeightKind kind = WeightKind::linear;
  ParameterPart part{};
};

/// The rows in order of Weight.
std::span<const TensorRow> tensor_table();
inline const TensorRow& tensor_row(Weight weight) {
  return tensor_table()[static_cast<std::size_t>(weight)];
}

/// One weight of a model.
struct WeightSpec {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Split row_split = Split::none;
  Split col_split = Split::none;
  int layer = -1;   ///< -1: embedding, final norm, head
  int expert = -1;  ///< the expert it belongs to
  WeightKind kind = WeightKind::linear;
  Weight weight{};
};

/// The weight at its place: `layer` for what layers have, `expert` for what experts have. With tied embeddings the head
/// is the embedding: its name, shape and values.
WeightSpec weight_spec(const ModelConfig& model, Weight weight, int layer = -1, int expert = -1);

/// Whether the layer (-1 outside the layers) has it.
bool has_weight(const ModelConfig& model, Weight weight, int layer = -1);

/// visit(const WeightSpec&) for every weight of the model in program order; a tied head is not listed twice. Stops
/// where visit throws.
template <class Visit>
void for_each_weight(const ModelConfig& model, const Visit& visit) {
  const auto scope = [&](TensorScope wanted, int layer, int expert) {
    for (const TensorRow& row : tensor_table()) {
      if (row.scope == wanted && has_weight(model, row.weight, layer)) {
        visit(weight_spec(model, row.weight, layer, expert));
      }
    }
  };
  scope(TensorScope::first_stage, -1, -1);
  for (int layer = 0; layer < model.layers.size(); ++layer) {
    scope(TensorScope::layer, layer, -1);
    for (int expert = 0; expert < model.layers[layer].feed_forward.num_experts; ++expert) {
      scope(TensorScope::expert, layer, expert);
    }
  }
  for (const TensorRow& row : tensor_table()) {
    if (row.scope != TensorScope::last_stage || !has_weight(model, row.weight)) continue;
    if (row.weight == Weight::head && model.tie_word_embeddings) continue;
    visit(weight_spec(model, row.weight));
  }
}

std::vector<WeightSpec> all_weights(const ModelConfig& model);

/// A row of the table at one kind of layer, and how many weights of the model are like it.
struct TensorCount {
  const TensorRow* row = nullptr;
  int kind = 0;  ///< of the layers (LayerList::kinds); 0 outside the layers
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t layers = 1;   ///< that have it
  std::int64_t experts = 1;  ///< of each layer that have it
  std::int64_t elements() const { return rows * cols * layers * experts; }
};

/// Every weight, counted by kind: of a size that does not grow with layers or experts. A tied head is left out.
std::vector<TensorCount> tensor_counts(const ModelConfig& model);

/// Elements by part. A replicated weight counts on every rank that holds it.
struct ParameterCount {
  std::int64_t embedding = 0;
  std::int64_t attention = 0;  ///< projections
  std::int64_t norms = 0;
  std::int64_t router = 0;
  std::int64_t experts = 0;
  std::int64_t mlp = 0;   ///< of dense layers, and shared experts
  std::int64_t head = 0;  ///< 0 where the head is the embedding that the rank holds already
  std::int64_t& operator[](ParameterPart part);
  std::int64_t total() const { return embedding + attention + norms + router + experts + mlp + head; }
};

/// Elements of the whole model, each weight once.
ParameterCount model_parameters(const ModelConfig& model);

}  // namespace shardproof
