#include <cmath>
#include <nlohmann/json.hpp>

#include "emu/paper/check.h"
#include "emu/plan/save.h"
#include "emu/report/internal/problems_json.h"
#include "emu/report/json.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

Json parallel_json(const std::optional<Parallel>& parallel) {
  if (!parallel) return nullptr;
  const Parallel& p = *parallel;
  return {{"tp", p.tp},   {"cp", p.cp},   {"dp", p.dp}, {"pp", p.pp},       {"ep", p.ep},
          {"etp", p.etp}, {"edp", p.edp}, {"sp", p.sp}, {"gpus", p.world()}};
}

/// [begin, end): two numbers, whatever the length.
Json range_json(Range range) {
  return Json::array({range.begin, range.end()});
}

Json rank_json(const RankFigures& r) {
  return {{"rank", r.rank},
          {"attention", {{"tp", r.at.tp}, {"cp", r.at.cp}, {"dp", r.at.dp}, {"pp", r.at.pp}}},
          {"experts", {{"etp", r.at.etp}, {"ep", r.at.ep}, {"edp", r.at.edp}, {"pp", r.at.pp}}},
          {"layers", range_json(r.layers)},
          {"heads", range_json(r.heads)},
          {"kv_heads", range_json(r.kv_heads)},
          {"local_experts", range_json(r.experts)},
          {"expert_width", range_json(r.intermediate_size)},
          {"vocabulary", range_json(r.vocabulary)},
          {"sequences", r.sequences},
          {"tokens", r.tokens},
          {"parameters", r.parameters.total()},
          {"weight_bytes", r.weights.total()},
          {"kv_cache_bytes", r.kv_cache_bytes},
          {"activation_bytes", r.activation_bytes},
          {"prefill_flops", r.prefill.flops()},
          {"prefill_sent_bytes", r.prefill.sent_bytes()},
          {"decode_flops", r.decode.flops()},
          {"decode_sent_bytes", r.decode.sent_bytes()}};
}

Json quantity_json(const CheckReport::Quantity& quantity) {
  const QuantityValue& value = quantity.value;
  Json json = Json::object();
  if (!value.unknown.empty()) {
    json["value"] = nullptr;
    json["unverified"] = value.unknown;
  } else if (value.per_rank) {
    json["max"] = value.max;
    json["min"] = value.min;
    json["mean"] = value.mean;
  } else {
    json["value"] = value.value;
  }
  if (value.interval) {
    json["low"] = value.low;
    json["high"] = value.high;
  }
  json["unit"] = quantity.definition->unit;
  json["formula"] = quantity.definition->formula;
  if (!value.arithmetic.empty()) json["arithmetic"] = value.arithmetic;
  return json;
}

Json claim_json(const JudgedClaim& judged) {
  const Claim& claim = judged.claim;
  return {{"document", claim.document},
          {"text", claim.text},
          {"quantity", claim.quantity},
          {"relation", claim.relation},
          {"stated", claim.stated},
          {"unit", claim.unit},
          {"computed", std::isfinite(judged.computed) ? Json(judged.computed) : Json(nullptr)},
          {"verdict", to_string(judged.verdict)},
          {"arithmetic", judged.arithmetic}};
}

}  // namespace

std::string to_json(const CheckReport& report) {
  Json json = {{"schema", "shardproof.check/1"}};
  json["plan"] = Json::parse(plan_json(report.plan, -1));
  json["defaults"] = report.plan.defaults;
  json["model_notes"] = report.plan.model_notes;
  json["problems"] = problems_json(report.problems);
  json["fits_memory"] = report.fits_memory ? Json(*report.fits_memory) : Json(nullptr);
  json["neighbours"] = {{"same_gpus", parallel_json(report.neighbours.same_gpus)},
                        {"same_degrees", parallel_json(report.neighbours.same_degrees)}};
  json["ranks"] = Json::array();
  for (const RankFigures& rank : report.ranks) json["ranks"].push_back(rank_json(rank));
  json["quantities"] = Json::object();
  for (const auto& quantity : report.quantities)
    json["quantities"][quantity.definition->name] = quantity_json(quantity);
  json["claims"] = Json::array();
  for (const JudgedClaim& judged : report.claims) json["claims"].push_back(claim_json(judged));
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace shardproof
