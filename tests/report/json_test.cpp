// Every JSON document that the program writes says first what it is.
#include "emu/report/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/report.h"
#include "emu/mutate/mutation.h"
#include "emu/paper/check.h"
#include "emu/report/baseline.h"
#include "emu/report/search_run.h"
#include "emu/timeline/audit.h"
#include "emu/timeline/graph.h"
#include "emu/timeline/projection.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

/// Documents by their schema: a changed meaning changes the number here, in json.h, README and CHANGELOG.
std::vector<std::pair<std::string, std::string>> documents() {
  const Plan plan = testing::small_plan({});
  const VerifyReport report{.plan = plan};
  const Proof proof{.algebra = report, .rounding = {}};
  const Proof with_rounding{.algebra = report, .rounding = report};
  const std::vector<OrderReport> orders{{Algorithm::ring, proof}};
  const std::vector<MutationScore> scores{{.plan = plan, .results = {}}};
  return {
      {"shardproof.verify/2", to_json(report)},
      {"shardproof.verify/2", to_json(proof)},
      {"shardproof.verify/2", to_json(with_rounding)},
      {"shardproof.orders/1", to_json(orders)},
      {"shardproof.check/1", to_json(check(plan))},
      {"shardproof.mutate/1", to_json(scores)},
      {"shardproof.graph/1", to_json(deployment_graph(plan))},
      {"shardproof.time/1", to_json(project(plan, choose_hardware(built_in_hardware(), plan.hardware, {}), {}), plan)},
      {"shardproof.search/1", to_json(SearchRun{.space = {.base = plan}, .options = {}, .report = {}})},
      {"shardproof.audit/1", to_json(std::vector<Finding>{}, plan)},
      {"shardproof.baseline/1", to_json(Baseline{})}};
}

TEST(JsonDocuments, BeginWithTheirSchemaAndItsVersion) {
  for (const auto& [schema, text] : documents()) {
    const auto document = nlohmann::ordered_json::parse(text);

    ASSERT_FALSE(document.empty()) << schema;
    EXPECT_EQ(document.begin().key(), "schema") << schema;
    EXPECT_EQ(document.begin().value(), schema);
  }
}

TEST(JsonOfAScheme, SaysUnderHowManySchedulesItRanAndWhatElseIsNoted) {
  const auto schedules = [](const VerifyReport& report) {
    return nlohmann::ordered_json::parse(to_json(report)).value("schedules", nlohmann::ordered_json());
  };
  VerifyReport report{.plan = testing::small_plan({}), .notes = {"y: tapped by 1 of 2 ranks; not by 1"}};

  EXPECT_TRUE(schedules(report).is_null());
  report.schedules = 20;
  EXPECT_TRUE(schedules(report)["first_that_differs"].is_null());
  report.schedule_dependent = 7;
  EXPECT_EQ(schedules(report)["run"], 20);
  EXPECT_EQ(schedules(report)["first_that_differs"], 7);
  EXPECT_EQ(nlohmann::ordered_json::parse(to_json(report))["notes"].front(), report.notes.front());
}

}  // namespace
}  // namespace shardproof
