// Reads the `model` part of a plan: a Hugging Face config.json object.
#pragma once

#include <string>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/model/config.h"

namespace shardproof {

struct LoadedModel {
  ModelConfig model;
  /// What of the config is left out of the emulation without changing how tensors are sharded.
  std::vector<std::string> notes;
};

/// The keys of the config's family (family.h), and aliases of them. Keys that cannot change the forward pass are
/// skipped; keys that would change it in a way that is not understood are refused, each with the reason. Null is
/// absent.
LoadedModel read_model(const JsonValue& config, const std::string& path, std::vector<Problem>& problems);

}  // namespace shardproof
