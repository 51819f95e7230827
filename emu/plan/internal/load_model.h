// The model of a plan file: in it, in a file of its own, or in the directory of a checkpoint.
#pragma once

#include <filesystem>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/input/problem.h"
#include "emu/model/families/load.h"
#include "emu/plan/load.h"

namespace shardproof {

/// `files` gets what it was read from.
LoadedModel read_model_member(const JsonValue& value, const std::filesystem::path& base_dir, LoadedPlan& files,
                              std::vector<Problem>& problems);

}  // namespace shardproof
