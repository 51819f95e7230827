// Reads the `model` part of a plan: a Hugging Face config.json object.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/model/config.h"

namespace shardproof {

struct LoadedModel {
  ModelConfig model;
  /// A sliding attention window, when the config has one: it changes nothing for sequences no longer than it.
  std::optional<std::int64_t> sliding_window;
  /// What of the config is left out of the emulation without changing how tensors are sharded.
  std::vector<std::string> notes;
};

/// Mixtral's keys, and aliases of other Mixture-of-Experts configs. Keys that cannot change the forward pass are
/// skipped; keys that would change it in a way the emulation does not compute are refused, each with the reason.
LoadedModel read_model(const JsonValue& config, const std::string& path, std::vector<Problem>& problems);

}  // namespace shardproof
