// The golden checkpoints, run on virtual ranks: each rank reads its slices of the files.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "emu/weights/checkpoint.h"
#include "tests/support/golden_families.h"

namespace shardproof {
namespace {

struct Degrees {
  const char* name;
  Parallel parallel;
};

/// Each divides the heads and experts of some golden models; where one does not divide a model's, it is left out.
const std::vector<Degrees> kDegrees = {
    {"tp2_ep2", {.tp = 2, .ep = 2}},
    {"tp2_etp2_sp", {.tp = 2, .etp = 2, .sp = true}},
    {"dp2_ep2", {.dp = 2, .ep = 2}},
    {"dp2_edp2", {.dp = 2, .edp = 2}},
    {"tp2_pp2_ep2_sp", {.tp = 2, .pp = 2, .ep = 2, .sp = true}},
    {"tp3_etp3", {.tp = 3, .etp = 3}},
    {"dp3_pp2_ep3", {.dp = 3, .pp = 2, .ep = 3}},
    {"tp4_ep4", {.tp = 4, .ep = 4}},
    {"dp5_ep5", {.dp = 5, .ep = 5}},
    {"dp3_ep3", {.dp = 3, .ep = 3}},
    {"dp2_pp2_edp2", {.dp = 2, .pp = 2, .edp = 2}},
    {"tp2_dp2_etp4_sp", {.tp = 2, .dp = 2, .etp = 4, .sp = true}},
    {"tp4_sp", {.tp = 4, .edp = 4, .sp = true}},
    {"tp2_pp3", {.tp = 2, .pp = 3, .edp = 2}},
    {"tp2_dp2_ep2_etp2", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}},
};

const std::vector<std::string> kCases = {"grouped", "tied_top1", "sharded_one_kv_head", "bfloat16_all_experts",
                                         "float16_tied"};
std::vector<std::string> all_cases() {
  std::vector<std::string> all = kCases;
  for (const std::string& family : testing::kGoldenFamilies) all.push_back("families/" + family);
  return all;
}

Plan plan_for(const Checkpoint& checkpoint, const Parallel& parallel) {
  Plan plan;
  plan.name = "golden";
  plan.model = checkpoint.model();
  plan.parallel = parallel;
  plan.workload.lengths = {7, 1, 4, 9, 3};
  return plan;
}

std::string failure(const VerifyReport& report) {
  std::string text = std::string(to_string(report.verdict)) + (report.stall ? report.stall->text : "");
  if (report.first_divergence) text += ": " + report.first_divergence->message;
  for (const Problem& problem : report.problems) text += "; " + problem.field + ": " + problem.message;
  return text;
}

class GoldenCheckpoints : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenCheckpoints, PassVerifyUnderEveryPlanThatFitsThem) {
  const Checkpoint checkpoint(std::filesystem::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden" / GetParam());

  int plans = 0;
  for (const Degrees& degrees : kDegrees) {
    const Plan plan = plan_for(checkpoint, degrees.parallel);
    if (!validate(plan).empty()) continue;
    ++plans;
    for (const ops::Format format : {ops::Format::exact, ops::Format::fp32, ops::Format::bf16}) {
      const VerifyReport report = verify(plan, {.format = format, .threads = 2, .weights = &checkpoint});

      EXPECT_EQ(report.verdict, Verdict::pass)
          << degrees.name << " in " << ops::to_string(format) << ": " << failure(report);
    }
  }
  EXPECT_GE(plans, 3);
}

INSTANTIATE_TEST_SUITE_P(Transformers, GoldenCheckpoints, ::testing::ValuesIn(all_cases()), [](const auto& parameter) {
  const std::string& name = parameter.param;
  return name.substr(name.find('/') + 1);
});

}  // namespace
}  // namespace shardproof
