#include "emu/plan/save.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "emu/model/fields.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

/// Of a model whose layers are all alike, which is what the loader reads.
Json model_json(const ModelConfig& model) {
  Json json = {{"model_type", model.model_type}};
  visit_fields(model, [&](const FieldInfo& field, const auto& value) {
    if (!field.from_family) json[std::string(field.key)] = value;
  });
  json["torch_dtype"] = model.dtype;
  return json;
}

Json hardware_json(const Hardware& hardware) {
  Json json = {{"gpus", hardware.gpus}, {"gpus_per_node", hardware.gpus_per_node}};
  const auto stated = [&](const char* key, double value) {
    if (value != 0) json[key] = value;
  };
  stated("memory_gb", hardware.memory_gb);
  stated("tflops", hardware.tflops);
  stated("mfu", hardware.mfu);
  stated("memory_bandwidth_tbps", hardware.memory_bandwidth_tbps);
  stated("bandwidth_utilization", hardware.bandwidth_utilization);
  stated("link_gbps", hardware.link_gbps);
  stated("link_latency_us", hardware.link_latency_us);
  return json;
}

Json workload_json(const Workload& workload) {
  Json json = Json::object();
  const std::vector<std::int64_t>& lengths = workload.lengths;
  json["batch"] = lengths.size();
  if (!lengths.empty() && std::all_of(lengths.begin(), lengths.end(), [&](auto l) { return l == lengths[0]; })) {
    json["sequence"] = lengths[0];
  } else {
    json["lengths"] = lengths;
  }
  json["microbatches"] = workload.microbatches;
  json["seed"] = workload.seed;
  // Even is what is meant without a word.
  if (!workload.routing.counts.empty()) {
    json["routing"]["counts"] = workload.routing.counts;
  } else if (!workload.routing.is_even()) {
    json["routing"]["zipf"] = workload.routing.zipf;
  }
  return json;
}

}  // namespace

std::string plan_json(const Plan& plan, int indent) {
  const Parallel& p = plan.parallel;
  Json json = {{"name", plan.name}, {"model", model_json(plan.model)}};
  if (plan.hardware) json["hardware"] = hardware_json(*plan.hardware);
  json["parallel"] = {{"tp", p.tp}, {"cp", p.cp},   {"dp", p.dp},   {"pp", p.pp},
                      {"ep", p.ep}, {"etp", p.etp}, {"edp", p.edp}, {"sp", p.sp}};
  if (p.make_vocab_size_divisible_by > 0) {
    json["parallel"]["make_vocab_size_divisible_by"] = p.make_vocab_size_divisible_by;
  }
  if (!p.layers_per_stage.empty()) json["parallel"]["layers_per_stage"] = p.layers_per_stage;
  json["workload"] = workload_json(plan.workload);
  json["notes"] = plan.notes;
  Json claims = Json::array();
  for (const Claim& claim : plan.claims) {
    claims.push_back({{"document", claim.document},
                      {"text", claim.text},
                      {"quantity", claim.quantity},
                      {"relation", claim.relation},
                      {"stated", claim.stated},
                      {"unit", claim.unit}});
  }
  json["claims"] = std::move(claims);
  // A name read from the file system need not be UTF-8; a report must not fail over it.
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace shardproof
