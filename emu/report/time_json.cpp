#include <nlohmann/json.hpp>

#include "emu/plan/save.h"
#include "emu/report/json.h"
#include "emu/timeline/anchors.h"
#include "emu/timeline/projection.h"
#include "emu/timeline/request_times.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

Json interval_json(const Interval& interval, bool calibrated) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}, {"calibrated", calibrated}};
}

Json pass_json(const PassTiming& pass) {
  Json communication = Json::array();
  for (const CommunicationTime& total : pass.communication) {
    communication.push_back({{"operation", to_string(total.operation)},
                             {"axis", to_string(total.axis)},
                             {"calls", total.calls},
                             {"wire_bytes", total.wire_bytes},
                             {"moving_seconds", total.moving + total.hidden},
                             {"exposed_seconds", total.moving},
                             {"hidden_seconds", total.hidden},
                             {"waiting_seconds", total.waiting}});
  }
  Json critical = Json::array();
  for (const OpTime& op : pass.critical) {
    critical.push_back({{"op", to_string(op.op)}, {"seconds", op.seconds}, {"count", op.count}});
  }
  return {{"seconds", pass.seconds},
          {"seconds_between_steps", pass.period},
          {"tokens", pass.tokens},
          {"flops", pass.flops},
          {"bytes", pass.bytes},
          {"mfu", pass.mfu},
          {"bandwidth_share", pass.bandwidth_share},
          {"shares",
           {{"overhead", pass.overhead},
            {"computing", pass.computing},
            {"communicating", pass.communicating},
            {"waiting", pass.waiting},
            {"bubble", pass.bubble}}},
          {"communication", std::move(communication)},
          {"critical_path", std::move(critical)}};
}

Json requests_json(const RequestTimes& times, bool prefill, bool decode) {
  Json json = {{"requests", times.requests.size()}, {"steps", times.steps},
               {"shapes_replayed", times.shapes},   {"seconds", times.seconds},
               {"seconds_in_steps", times.busy},    {"output_tokens", times.output_tokens}};
  const std::pair<const char*, double> shares[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
  for (const auto& [name, share] : shares) {
    json["seconds_to_first_token"][name] = interval_json(times.first_token(share), prefill);
    json["seconds_per_output_token"][name] = interval_json(times.output_token(share), decode);
  }
  json["output_tokens_per_second"] = interval_json(times.tokens_per_second(), decode);
  return json;
}

const char* to_string(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8:
      return "fp8";
    case WeightFormat::four_bit:
      return "four_bit";
    case WeightFormat::as_run:
      break;
  }
  return "as_run";
}

}  // namespace

std::string to_json(const Projection& p, const Plan& plan, const RequestTimes* requests) {
  const bool prefill = p.hardware.calibrated_prefill, decode = p.hardware.calibrated_decode;
  Json json = {{"schema", "shardproof.time/1"}};
  json["plan"] = Json::parse(plan_json(plan, -1));
  json["hardware"] = {{"name", p.hardware.name}, {"open", p.hardware.open}, {"taken", p.hardware.taken}};
  json["format"] = ops::to_string(p.options.format);
  json["weights"] = to_string(p.options.weights);
  json["gpus"] = p.world;
  json["nodes"] = p.nodes();
  json["seconds_to_first_token"] = {{"p50", interval_json(p.seconds_to_first_token(0.5), prefill)},
                                    {"p90", interval_json(p.seconds_to_first_token(0.9), prefill)},
                                    {"max", interval_json(p.seconds_to_first_token(1), prefill)}};
  json["seconds_per_output_token"] = interval_json(p.seconds_per_output_token(), decode);
  json["prompt_tokens_per_second"] = interval_json(p.prompt_tokens_per_second(), prefill);
  json["output_tokens_per_second"] = interval_json(p.output_tokens_per_second(), decode);
  json["prefill"] = pass_json(p.prefill);
  json["decode"] = pass_json(p.decode);
  if (requests != nullptr) json["requests"] = requests_json(*requests, prefill, decode);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_json(const std::vector<ProjectedAnchor>& anchors) {
  Json json = {{"schema", "shardproof.projected_anchors/1"}, {"cases", Json::array()}};
  for (const ProjectedAnchor& row : anchors) {
    json["cases"].push_back({{"id", row.anchor->id},
                             {"group", row.anchor->group()},
                             {"engine", row.anchor->engine},
                             {"card", row.anchor->card},
                             {"kind", to_string(row.anchor->kind)},
                             {"use", row.anchor->calibrates ? "calibrate" : "held_out"},
                             {"calibrated", row.calibrated},
                             {"stated_seconds", row.anchor->seconds},
                             {"projected_seconds", row.seconds},
                             {"error", row.error()},
                             {"source", row.anchor->source}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace shardproof
