// A family: a published architecture, by the model_type of its config files.
#pragma once

#include <span>
#include <string_view>

#include "emu/model/config.h"

namespace shardproof {

struct Family {
  std::string_view model_type;
  /// What the names in "architectures" begin with.
  std::string_view architecture;
  /// What its layers are before any key of a config is read: the defaults of the family's own config class.
  LayerSpec layer;
  /// Its config calls the experts' width moe_intermediate_size; then intermediate_size is that of dense layers.
  bool moe_intermediate_size = false;
  /// What of it is left out where figures are computed on paper; empty: nothing.
  std::string_view left_out;
};

/// In the order in which messages name them.
std::span<const Family> families();
/// Null when no family has that name.
const Family* find_family(std::string_view model_type);
/// "MixtralForCausalLM" is of "mixtral"; null when no family's names begin so.
const Family* family_of_architecture(std::string_view architecture);

}  // namespace shardproof
