// The weight registry: every weight of the model by its Hugging Face name, with its shape and how a plan splits it.
//
// A weight is a row-major matrix [out, in] as a checkpoint stores it; a norm is [1, hidden].
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "emu/model/config.h"

namespace shardproof {

/// What a dim of a weight is split by. Layout (layout.h) says which part of it a rank holds.
enum class Split {
  none,          ///< replicated
  q_heads,       ///< query heads x head_dim, over tp
  kv_heads,      ///< key/value heads x head_dim, over tp; replicated where tp exceeds them
  vocabulary,    ///< over tp
  expert_width,  ///< over etp
};

/// How a weight's values are made when no checkpoint is given (generator.h).
enum class WeightKind { linear, embedding, norm };

struct WeightSpec {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Split row_split = Split::none;
  Split col_split = Split::none;
  int layer = -1;   ///< -1: embedding, final norm, head
  int expert = -1;  ///< the expert it belongs to
  WeightKind kind = WeightKind::linear;
};

namespace registry {

WeightSpec embedding(const ModelConfig& model);
WeightSpec final_norm(const ModelConfig& model);
/// The output head; with tied embeddings, the embedding itself.
WeightSpec head(const ModelConfig& model);
WeightSpec attention_norm(const ModelConfig& model, int layer);
WeightSpec attention_q(const ModelConfig& model, int layer);
WeightSpec attention_k(const ModelConfig& model, int layer);
WeightSpec attention_v(const ModelConfig& model, int layer);
WeightSpec attention_output(const ModelConfig& model, int layer);
WeightSpec moe_norm(const ModelConfig& model, int layer);
WeightSpec router(const ModelConfig& model, int layer);
WeightSpec expert_gate(const ModelConfig& model, int layer, int expert);
WeightSpec expert_up(const ModelConfig& model, int layer, int expert);
WeightSpec expert_down(const ModelConfig& model, int layer, int expert);

/// Every weight, in program order; a tied head is not listed twice.
std::vector<WeightSpec> all(const ModelConfig& model);
/// The weight of that name; throws std::out_of_range when the model has none.
WeightSpec find(const ModelConfig& model, std::string_view name);

}  // namespace registry

}  // namespace shardproof
