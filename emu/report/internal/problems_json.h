// What is wrong with a plan, as every report lists it: [{"field": ..., "message": ...}, ...].
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "emu/input/problem.h"

namespace shardproof {

nlohmann::ordered_json problems_json(const std::vector<Problem>& problems);

}  // namespace shardproof
