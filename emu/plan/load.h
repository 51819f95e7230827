// Reads a plan file.
//
// The file is one JSON object: `model` (a Hugging Face config.json object, or a path relative to the plan file to one
// or to the directory of a checkpoint, of which verify then takes the weights too), `hardware`, `parallel`, `workload`,
// `claims`, `notes`, `name`. Unknown and duplicate keys, wrong types, numbers out of any sensible range, and a key
// given together with its alias are refused; every problem found is returned, each with the dotted field, the value and
// what would be right. Input is never trusted: a file over kMaxPlanBytes is refused before it is read, and nesting
// deeper than kMaxPlanDepth where it is met.
//
// Derived here, so that every later layer sees a complete plan:
//   dp   when left out: hardware.gpus / (tp * cp * pp), rounded down; 1 without hardware
//   etp  when left out: 1 (experts are whole; Megatron's own default is tp)
//   edp  always: tp * cp * dp / (etp * ep)
// A plan whose degrees do not fit together is still returned: validate() says why they do not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

inline constexpr std::uintmax_t kMaxPlanBytes = 4u << 20;
inline constexpr int kMaxPlanDepth = 16;

/// `plan` is empty exactly when `problems` is not.
struct LoadedPlan {
  std::optional<Plan> plan;
  std::vector<Problem> problems;
  std::string model_file = {};       ///< that was read for `model`; empty where the plan holds it
  std::string model_directory = {};  ///< that `model` names, with weights beside the config; or empty
};

LoadedPlan load_plan(const std::filesystem::path& path);

/// `name` stands for the text in messages; a relative `model` path starts at `base_dir`.
LoadedPlan parse_plan(std::string_view text, std::string_view name, const std::filesystem::path& base_dir);

/// Where the workload says nothing of what the cache holds, takes what the model's config says.
void take_cache_format(Plan& plan);

}  // namespace shardproof
