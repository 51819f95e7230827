#include <nlohmann/json.hpp>

#include "emu/mutate/mutation.h"
#include "emu/report/json.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

const char* to_string(MutationResult::Outcome outcome) {
  switch (outcome) {
    case MutationResult::Outcome::detected:
      return "detected";
    case MutationResult::Outcome::equivalent:
      return "equivalent";
    case MutationResult::Outcome::missed:
      break;
  }
  return "missed";
}

Json counts_json(const MutationCounts& counts) {
  return {{"instances", counts.instances},     {"detected", counts.detected},     {"tap_right", counts.tap_right},
          {"cause_right", counts.cause_right}, {"equivalent", counts.equivalent}, {"missed", counts.missed}};
}

Json result_json(const MutationResult& result) {
  const Mutation& mutation = result.mutation;
  return {
      {"kind", mutation.kind},
      {"class", to_string(result.of)},
      {"format", ops::to_string(mutation.format)},
      {"layer", mutation.layer},
      {"ranks", mutation.ranks},
      {"group", mutation.group},
      {"microbatch", mutation.microbatch},
      {"outcome", to_string(result.outcome)},
      {"verdict", to_string(result.verdict)},
      {"expected", {{"tap", mutation.tap.empty() ? Json(nullptr) : Json(mutation.tap)}, {"causes", mutation.causes}}},
      {"found",
       {{"tap", result.tap.empty() ? Json(nullptr) : Json(result.tap)},
        {"ranks", result.ranks},
        {"cause", {{"name", result.cause.name}, {"evidence", result.cause.evidence}}}}},
      {"tap_right", result.tap_right},
      {"cause_right", result.cause_right}};
}

}  // namespace

std::string to_json(std::span<const MutationScore> scores) {
  Json document;
  document["schema"] = "shardproof.mutate/1";
  MutationCounts sharding, rounding;
  for (const MutationScore& score : scores) {
    sharding.add(score.counts(MutationClass::sharding));
    rounding.add(score.counts(MutationClass::rounding));
  }
  document["score"] = counts_json(sharding);
  document["rounding_score"] = counts_json(rounding);
  document["kinds"] = Json::array();
  for (const MutationKind& kind : mutation_kinds()) {
    MutationCounts counts;
    for (const MutationScore& score : scores) {
      for (const MutationResult& result : score.results) {
        if (result.mutation.kind == kind.name) counts.add(result);
      }
    }
    Json entry{{"kind", kind.name}, {"class", to_string(kind.of)}, {"description", kind.description}};
    entry.update(counts_json(counts));
    document["kinds"].push_back(entry);
  }
  document["plans"] = Json::array();
  for (const MutationScore& score : scores) {
    Json results = Json::array();
    for (const MutationResult& result : score.results) results.push_back(result_json(result));
    document["plans"].push_back({{"name", score.plan.name},
                                 {"ranks", score.plan.world()},
                                 {"seed", score.plan.workload.seed},
                                 {"score", counts_json(score.counts(MutationClass::sharding))},
                                 {"rounding_score", counts_json(score.counts(MutationClass::rounding))},
                                 {"seconds", score.seconds},
                                 {"mutations", results}});
  }
  return document.dump(2) + "\n";
}

}  // namespace shardproof
