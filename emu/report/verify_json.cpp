#include <cmath>
#include <nlohmann/json.hpp>

#include "emu/judge/generate.h"
#include "emu/judge/report.h"
#include "emu/plan/save.h"
#include "emu/report/internal/problems_json.h"
#include "emu/report/json.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

/// JSON has no infinity: an error that is not a number is written as a string.
Json number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

Json taps_json(const std::vector<TapReport>& taps) {
  Json array = Json::array();
  for (const TapReport& tap : taps) {
    array.push_back({{"name", tap.name},
                     {"verdict", to_string(tap.verdict)},
                     {"max_error", number(tap.max_error)},
                     {"bound", number(tap.bound)},
                     {"replicas_equal", tap.replicas_equal}});
  }
  return array;
}

Json cause_json(const std::optional<Cause>& cause) {
  if (!cause) return nullptr;
  return {{"name", cause->name}, {"evidence", cause->evidence}};
}

Json divergence_json(const std::optional<Divergence>& divergence) {
  if (!divergence) return nullptr;
  Json served = nullptr;
  if (const std::optional<ServedAt>& at = divergence->served) {
    served = {{"step", at->step}, {"request", at->request}, {"position", at->position}};
  }
  return {{"tap", divergence->tap},
          {"ranks", divergence->ranks},
          {"index", {divergence->row, divergence->col}},
          {"served", served},
          {"expected", number(divergence->expected)},
          {"got", number(divergence->got)},
          {"error", number(divergence->error)},
          {"bound", number(divergence->bound)},
          {"message", divergence->message},
          {"cause", cause_json(divergence->cause)}};
}

Json call_json(const CallInfo& call) {
  return {{"rank", to_int(call.rank)},
          {"operation", call.operation_name()},
          {"group", call.group},
          {"sequence", call.sequence},
          {"type", to_string(call.type)},
          {"elements", call.elements},
          {"peer", call.peer < 0 ? Json(nullptr) : Json(call.peer)},
          {"file", call.where.file_name()},
          {"line", call.where.line()}};
}

Json calls_json(const std::vector<CallInfo>& calls) {
  Json array = Json::array();
  for (const CallInfo& call : calls) array.push_back(call_json(call));
  return array;
}

const char* absence_word(Absence why) {
  switch (why) {
    case Absence::waiting:
      return "waiting";
    case Absence::finished:
      return "finished";
    case Absence::failed:
      return "failed";
    case Absence::outside:
      break;
  }
  return "outside";
}

Json wait_graph_json(const WaitGraph& graph) {
  Json array = Json::array();
  for (const Rendezvous& rendezvous : graph.rendezvous) {
    Json absent = Json::array();
    for (const AbsentRank& rank : rendezvous.absent) {
      absent.push_back({{"rank", to_int(rank.rank)},
                        {"why", absence_word(rank.why)},
                        {"meeting", rank.at < 0 ? Json(nullptr) : Json(rank.at)},
                        {"calls", rank.calls}});
    }
    array.push_back({{"group", rendezvous.group},
                     {"operation", to_string(rendezvous.operation)},
                     {"sequence", rendezvous.sequence},
                     {"arrived", calls_json(rendezvous.arrived)},
                     {"issued", calls_json(rendezvous.issued)},
                     {"absent", absent}});
  }
  Json cycle = Json::array();
  for (const GlobalRank rank : graph.cycle) cycle.push_back(to_int(rank));
  return {{"meetings", array}, {"cycle", cycle}, {"causes", graph.causes}};
}

/// The stall's fields stand beside the report's, as they did before it had a kind.
void add_stall(const std::optional<Stall>& stall, Json& document) {
  document["deadlock"] = stall ? Json(stall->text) : Json(nullptr);
  if (!stall) return;
  document["deadlock_cause"] = cause_json(stall->cause);
  if (stall->graph) document["wait_graph"] = wait_graph_json(*stall->graph);
  if (!stall->calls.empty()) document["mismatched_calls"] = calls_json(stall->calls);
  document["stall"] = {{"kind", to_string(stall->kind)}};
}

Json collectives_json(const std::vector<CollectiveReport>& collectives) {
  Json array = Json::array();
  for (const CollectiveReport& entry : collectives) {
    array.push_back(
        {{"operation", entry.operation}, {"group", entry.group}, {"calls", entry.calls}, {"bytes", entry.bytes}});
  }
  return array;
}

Json sum_json(const SumBits& sum) {
  // A sum that is not finite has no number of bits.
  return {{"tap", sum.tap}, {"sum", sum.sum}, {"bits", sum.finite() ? Json(sum.bits) : Json(nullptr)}};
}

Json exact_use_json(const std::optional<ExactUse>& use) {
  if (!use) return nullptr;
  Json sums = Json::array();
  for (const SumBits& sum : use->sums) sums.push_back(sum_json(sum));
  Json grid = Json::array();
  for (const GridUse& kind : use->grid) {
    grid.push_back(
        {{"taps", kind.tap},
         {"tensors", kind.tensors},
         {"nonzero", {{"least", kind.least_nonzero}, {"median", kind.median_nonzero}, {"most", kind.most_nonzero}}},
         {"fewest_distinct", kind.distinct},
         {"largest_bits", kind.bits}});
  }
  return {{"budget_bits", kSumBudget},
          {"widest_sum", use->widest ? sum_json(*use->widest) : Json(nullptr)},
          {"sums", sums},
          {"grid", grid},
          {"warnings", problems_json(use->weak)}};
}

Json dump_json(const DumpCoverage& dump) {
  return {{"profile", dump.profile},
          {"judged", dump.judged},
          {"not_judged", problems_json(dump.not_judged)},
          {"computed", dump.computed}};
}

/// `algebra` is what a report on rounding rests on.
Json report_json(const VerifyReport& report, const VerifyReport* algebra = nullptr) {
  Json document;
  document["schema"] = "shardproof.verify/2";
  document["plan"] = Json::parse(plan_json(report.plan));
  document["defaults"] = report.plan.defaults;
  document["model_notes"] = report.plan.model_notes;
  document["ranks"] = report.plan.world();
  document["format"] = ops::to_string(report.format);
  document["seed"] = report.plan.workload.seed;
  document["threads"] = report.threads;
  document["schedule"] = report.schedule ? Json(*report.schedule) : Json(nullptr);
  if (report.schedules > 0) {
    const std::optional<std::uint64_t>& seed = report.schedule_dependent;
    document["schedules"] = {{"run", report.schedules}, {"first_that_differs", seed ? Json(*seed) : Json(nullptr)}};
  }
  document["verdict"] = to_string(report.verdict);
  document["problems"] = problems_json(report.problems);
  document["notes"] = report.notes;
  document["taps"] = taps_json(report.taps);
  document["first_divergence"] = divergence_json(report.first_divergence);
  if (report.dump) document["dump"] = dump_json(*report.dump);
  if (algebra != nullptr) {
    document["algebra"] = {{"verdict", to_string(algebra->verdict)},
                           {"first_divergence", divergence_json(algebra->first_divergence)},
                           {"taps", algebra->taps.size()},
                           {"elements", algebra->elements},
                           {"seconds", algebra->seconds()}};
  }
  document["exact_use"] = exact_use_json(algebra != nullptr ? algebra->exact_use : report.exact_use);
  document["router_choices"] = report.router_choices;
  document["tokens_per_expert"] = report.tokens_per_expert;
  if (report.replicas) {
    document["replicas"] = {{"tokens_per_physical_expert", report.replicas->tokens},
                            {"imbalance_without", report.replicas->imbalance_without},
                            {"imbalance_with", report.replicas->imbalance_with}};
  }
  document["collectives"] = collectives_json(report.collectives);
  add_stall(report.stall, document);
  document["seconds"] = {{"reference", report.reference_seconds}, {"sharded", report.sharded_seconds}};
  return document;
}

Json amplification_json(const AmplificationReport& report) {
  Json kinds = Json::array();
  for (const AmplifiedTap& kind : report.kinds) {
    kinds.push_back({{"taps", kind.kind},
                     {"worst", kind.tap},
                     {"unsharded_error", number(kind.unsharded)},
                     {"sharded_error", number(kind.sharded)},
                     {"amplification", number(kind.amplification)}});
  }
  return {{"format", ops::to_string(report.format)},
          {"kinds", kinds},
          {"choices", report.choices},
          {"differing", report.differing},
          {"widest_margin", report.widest_margin},
          {"replayed", report.replayed},
          {"limit", report.limit ? Json(*report.limit) : Json(nullptr)},
          {"error", report.error.empty() ? Json(nullptr) : Json(report.error)}};
}

Json proof_json(const Proof& proof) {
  Json document = report_json(proof.last(), proof.rounding ? &proof.algebra : nullptr);
  document["verdict"] = to_string(proof.verdict());
  if (proof.amplification) document["amplification"] = amplification_json(*proof.amplification);
  return document;
}

Json generation_json(const Generation& generation) {
  Json requests = Json::array();
  for (const std::vector<GeneratedToken>& output : generation.outputs) {
    Json ids = Json::array(), close = Json::array();
    for (std::size_t place = 0; place < output.size(); ++place) {
      const GeneratedToken& token = output[place];
      ids.push_back(token.id);
      if (!token.close() && !token.differs) continue;
      close.push_back({{"place", place},
                       {"second", token.second},
                       {"margin", number(token.margin)},
                       {"error", number(token.error)},
                       {"differs", token.differs}});
    }
    requests.push_back({{"tokens", ids}, {"close", close}});
  }
  return requests;
}

std::string text_of(const Json& document) {
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string to_json(const VerifyReport& report) {
  return text_of(report_json(report));
}

std::string to_json(const Proof& proof) {
  return text_of(proof_json(proof));
}

std::string to_json(const Proof& proof, const Generation& generation) {
  Json document = proof_json(proof);
  document["generated"] = generation_json(generation);
  return text_of(document);
}

std::string to_json(const std::vector<OrderReport>& orders) {
  Json document{{"schema", "shardproof.orders/1"}, {"orders", Json::array()}};
  for (const OrderReport& order : orders) {
    document["orders"].push_back({{"all_reduce", to_string(order.algorithm)}, {"report", proof_json(order.proof)}});
  }
  return document.dump(2) + "\n";
}

}  // namespace shardproof
