#include <nlohmann/json.hpp>

#include "emu/plan/save.h"
#include "emu/report/json.h"
#include "emu/timeline/audit.h"

namespace shardproof {

std::string to_json(const std::vector<Finding>& findings, const Plan& plan) {
  using Json = nlohmann::ordered_json;
  Json json = {{"schema", "shardproof.audit/1"}};
  json["plan"] = Json::parse(plan_json(plan, -1));
  json["findings"] = Json::array();
  for (const Finding& finding : findings)
    json["findings"].push_back({{"kind", finding.kind}, {"message", finding.message}});
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace shardproof
