#include "emu/report/internal/problems_json.h"

#include <nlohmann/json.hpp>

namespace shardproof {

nlohmann::ordered_json problems_json(const std::vector<Problem>& problems) {
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const Problem& problem : problems) {
    array.push_back({{"field", problem.field}, {"message", problem.message}});
    if (!problem.file.empty()) array.back()["file"] = problem.file;
  }
  return array;
}

}  // namespace shardproof
