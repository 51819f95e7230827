#include <nlohmann/json.hpp>

#include "emu/plan/save.h"
#include "emu/report/json.h"
#include "emu/report/search_run.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

Json interval_json(const Interval& interval) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}};
}

Json axes_json(const Choice& choice) {
  Json json = Json::object();
  for (std::size_t i = 0; i < choice.size(); ++i) {
    const SearchAxis& axis = search_axes()[i];
    json[std::string(axis.name)] = axis.word == nullptr ? Json(choice[i]) : Json(axis.word(choice[i]));
  }
  return json;
}

Json layout_json(const TimedLayout& layout) {
  Json json = {{"axes", axes_json(layout.choice)},
               {"memory_bytes", layout.memory_bytes},
               {"seconds_to_first_token", interval_json(layout.first_token)},
               {"seconds_per_output_token", interval_json(layout.output_token)},
               {"tokens_per_second", interval_json(layout.tokens_per_second)},
               {"meets_limits", layout.meets_limits},
               {"pareto", layout.pareto}};
  json["loses_by"] = layout.loses_by.empty() ? Json(nullptr) : Json(layout.loses_by);
  return json;
}

Json limit_json(double seconds) {
  return seconds > 0 ? Json(seconds) : Json(nullptr);
}

}  // namespace

std::string to_json(const SearchRun& run) {
  const SearchReport& report = run.report;
  Json json = {{"schema", "shardproof.search/1"}};
  json["base"] = Json::parse(plan_json(run.space.base, -1));
  json["gpus"] = run.space.gpus;
  json["hardware"] = run.options.hardware.name;
  json["memory_bytes"] = run.options.memory_bytes;
  json["objective"] = to_string(run.options.objective);
  json["limits"] = {{"seconds_to_first_token", limit_json(run.options.limits.first_token)},
                    {"seconds_per_output_token", limit_json(run.options.limits.output_token)}};
  json["refused"] = report.refused;
  json["too_large"] = report.too_large;
  json["layouts"] = Json::array();
  for (const TimedLayout& layout : report.ranked) json["layouts"].push_back(layout_json(layout));
  json["proven"] = Json::array();
  for (const Verdict verdict : run.proven) json["proven"].push_back(to_string(verdict));
  if (run.given) {
    json["given"] = layout_json(run.given->layout);
    json["given"]["better"] = run.given->place;
    json["given"]["fits_memory"] = run.given->too_large.empty();
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace shardproof
