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
  attention_q,
  attention_k,
  attention_v,
  attention_output,
  moe_norm,
  router,
  expert_gate,
  expert_up,
  expert_down,
  final_norm,
  head,
};
inline constexpr int kWeights = static_cast<int>(Weight::head) + 1;

/// What a dim of a weight is split by. Layout (emu/plan/layout.h) says which part of it a rank holds.
enum class Split {
  none,               ///< replicated
  q_heads,            ///< query heads x head_dim, over tp
  kv_heads,           ///< key/value heads x head_dim, over tp; replicated where tp exceeds them
  vocabulary,         ///< over tp
  intermediate_size,  ///< over etp
};

/// How a weight's values are made when no checkpoint is given (emu/weights/store.h).
enum class WeightKind { linear, embedding, norm };

/// What a weight's elements count as.
enum class ParameterPart { embedding, attention, norms, router, experts, head };

/// How often the model has it, and which rank holds it: the first or last stage, each layer, each expert of a layer.
enum class TensorScope { first_stage, layer, expert, last_stage };

struct TensorRow {
  Weight weight{};
  TensorScope scope{};
  /// In a checkpoint: {layer} and {expert} stand for their indices.
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

/// visit(const WeightSpec&) for every weight of the model in program order; a tied head is not listed twice. Stops
/// where visit throws.
template <class Visit>
void for_each_weight(const ModelConfig& model, const Visit& visit) {
  const auto scope = [&](TensorScope wanted, int layer, int expert) {
    for (const TensorRow& row : tensor_table()) {
      if (row.scope == wanted) visit(weight_spec(model, row.weight, layer, expert));
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
    if (row.scope != TensorScope::last_stage || (row.weight == Weight::head && model.tie_word_embeddings)) continue;
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
  std::int64_t head = 0;  ///< 0 where the head is the embedding that the rank holds already
  std::int64_t& operator[](ParameterPart part);
  std::int64_t total() const { return embedding + attention + norms + router + experts + head; }
};

/// Elements of the whole model, each weight once.
ParameterCount model_parameters(const ModelConfig& model);

}  // namespace shardproof
