#include "emu/paper/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "emu/paper/rank_table.h"
#include "emu/report/json.h"
#include "emu/report/markdown.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

TEST(Check, WritesTheSchemaThatIsPromised) {
  const Json json = Json::parse(to_json(check(testing::shipped_plan("ep4_tp2_pp2_sp"))));

  EXPECT_EQ(json.at("schema"), "shardproof.check/1");
  EXPECT_TRUE(json.at("problems").empty());
  EXPECT_EQ(json.at("ranks").size(), 16u);
  EXPECT_EQ(json.at("quantities").at("world").at("value"), 16);
  for (const char* key : {"max", "min", "mean", "unit", "formula"}) {
    EXPECT_TRUE(json.at("quantities").at("weight_bytes_per_gpu").contains(key)) << key;
  }
  for (const char* key : {"document", "text", "quantity", "relation", "stated", "computed", "verdict", "arithmetic"}) {
    EXPECT_TRUE(json.at("claims").at(0).contains(key)) << key;
  }
}

TEST(Check, GivesProblemsAndNeighboursOfAnInvalidPlan) {
  const LoadedPlan loaded =
      load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/tests/plan/refused/tp4_ep16_pp4_dp2_on_16.json");
  ASSERT_TRUE(loaded.plan);

  const CheckReport report = check(*loaded.plan);
  const Json json = Json::parse(to_json(report));

  EXPECT_TRUE(report.ranks.empty());
  EXPECT_GE(json.at("problems").size(), 3u);
  EXPECT_EQ(json.at("neighbours").at("same_degrees").at("gpus"), 64);
  EXPECT_EQ(json.at("neighbours").at("same_gpus").at("gpus"), 16);
  EXPECT_THAT(to_markdown(report), HasSubstr("32 GPUs needed"));
}

TEST(Check, EveryQuantityHasAUniqueNameAFormulaAndAValueOrAReason) {
  std::set<std::string> names;
  for (const QuantityDefinition& definition : quantity_definitions()) {
    EXPECT_TRUE(names.insert(definition.name).second) << definition.name;
    EXPECT_FALSE(definition.formula.empty()) << definition.name;
  }
  std::mt19937_64 random(9);
  for (int round = 0; round < 50; ++round) {
    const Plan plan = testing::random_valid_plan(random, 64);
    for (const auto& quantity : check(plan).quantities) {
      const QuantityValue& value = quantity.value;
      if (!value.unknown.empty()) continue;
      EXPECT_TRUE(std::isfinite(value.per_rank ? value.max : value.value)) << quantity.definition->name;
      EXPECT_FALSE(value.arithmetic.empty()) << quantity.definition->name;
      EXPECT_LE(value.min, value.max);
    }
  }
}

TEST(Check, WritesMarkdownWithEveryClaim) {
  const CheckReport report = check(testing::shipped_plan("tp4_ep4_pp4"));

  const std::string markdown = to_markdown(report);

  for (const JudgedClaim& claim : report.claims) EXPECT_THAT(markdown, HasSubstr(claim.claim.text));
  EXPECT_THAT(markdown, HasSubstr("| --- |"));
}

TEST(RankTable, ListsSixteenGpusAndFoldsMore) {
  const Plan small = testing::shipped_plan("tp4_ep4_pp4");
  const Plan large = testing::shipped_plan("ep16_tp2_pp4");

  const TextRows all = rank_rows(small);
  const TextRows folded = rank_rows(large);

  EXPECT_EQ(all.size(), 17u);
  EXPECT_EQ(all[6][0], "5");
  EXPECT_LE(folded.size(), 20u);
  EXPECT_EQ(folded.back()[0], "127");
}

TEST(RankTable, StaysShortAtAThousandRanks) {
  Plan plan = testing::shipped_plan("ep64_tp2");
  plan.hardware.reset();
  plan.parallel = {.tp = 2, .dp = 64, .pp = 8, .ep = 64, .etp = 2, .edp = 1};

  const TextRows rows = rank_rows(plan);

  EXPECT_LE(rows.size(), 16u);
  EXPECT_EQ(rows.back()[0], "1023");
}

}  // namespace
}  // namespace shardproof
