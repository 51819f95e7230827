// A family: a published architecture, by the model_type of its config files. What its own implementation in Hugging
// Face Transformers makes of a key, or of its absence, is what ours does.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "emu/model/config.h"

namespace shardproof {

/// Which layers have experts, and by which keys a config says so.
enum class Mixture : std::int8_t {
  every_layer,
  no_layer,
  sparse_step,  ///< decoder_sparse_step and mlp_only_layers: every n-th, less those listed
  after_first,  ///< first_k_dense_replace: all but the first k
};

/// Which layers see a window, and by which keys a config says so.
enum class Window : std::int8_t {
  none,
  every_layer,   ///< sliding_window
  later_layers,  ///< with use_sliding_window, those from max_window_layers on; or as layer_types says
  early_layers,  ///< with use_sliding_window, every second of those before max_window_layers; or as layer_types says
  with_switch,   ///< with use_sliding_window, every layer
  alternating,   ///< as layer_types says, otherwise every second from the first on
};

/// Which projections of attention have a bias.
enum class AttentionBias : std::int8_t {
  never,
  qkv_by_key,  ///< attention_bias
  all_by_key,  ///< attention_bias, of the output too
  qkv,         ///< always, unless qkv_bias says otherwise
};

/// How a checkpoint of the family names what its feed-forward is made of (emu/weights/checkpoint_names.h).
enum class TensorNames : std::int8_t {
  block_sparse_moe,  ///< Mixtral's: w1, w3, w2
  mlp,               ///< gate_proj, up_proj, down_proj, under mlp.experts.E
  stacked_linear,    ///< Granite's: all experts in one tensor
  stacked_columns,   ///< gpt-oss's: all experts in one tensor, transposed, gate and up in turns
};

struct Family {
  std::string_view model_type;
  /// Other model_types of the same architecture.
  std::array<std::string_view, 3> also{};
  /// What the names in "architectures" begin with.
  std::string_view architecture;
  /// What its layers are before any key of a config is read: the defaults of the family's own config class. Sizes that
  /// are 0 follow from others, or have to be given.
  LayerSpec layer{};
  double rms_norm_eps = 1e-6;
  Mixture mixture = Mixture::every_layer;
  Window window = Window::none;
  AttentionBias attention_bias = AttentionBias::never;
  TensorNames names = TensorNames::mlp;
  /// norm_topk_prob says whether weights are renormalised; other classes have no such key.
  bool norm_topk_by_key = false;
  /// clip_qkv clamps queries, keys and values.
  bool clips_qkv = false;
  /// Its config calls the experts' width moe_intermediate_size; then intermediate_size is that of dense layers.
  bool moe_intermediate_size = false;
  /// n_shared_experts: how often the experts' width the shared one is wide.
  bool counts_shared_experts = false;
  /// n_shared_experts and first_k_dense_replace where they are absent.
  std::int64_t shared_experts = 1;
  std::int64_t first_dense = 0;
  /// Has keys that multiply the embedding, what is added to the residual stream, scores and logits.
  bool multipliers = false;
  /// use_qk_norm turns the norms of queries and keys on.
  bool qk_norm_by_key = false;
  /// partial_rotary_factor where it is absent.
  double partial_rotary_factor = 1;
  /// The name of the shared MLP in a checkpoint: mlp.NAME.gate_proj.weight.
  std::string_view shared_name = "shared_experts";
  /// Weights that its own implementation skips: layers for the prediction of further tokens.
  bool skips_prediction_layers = false;
  bool layer_norm = false;
};

/// In the order in which messages name them.
std::span<const Family> families();
/// "\"mixtral\", \"qwen3_moe\", ..."
std::string_view family_names();
/// Null when no family has that name.
const Family* find_family(std::string_view model_type);
/// "MixtralForCausalLM" is of "mixtral"; null when no family's names begin so.
const Family* family_of_architecture(std::string_view architecture);

}  // namespace shardproof
