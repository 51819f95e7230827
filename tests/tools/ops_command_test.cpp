// shardproof ops, as a user calls it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/tools/command.h"

namespace shardproof::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

std::string small_plan() {
  return temporary_file("plan.json", R"({"name": "small", "model": {"model_type": "mixtral", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "num_local_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 50}, "parallel": {"tp": 2, "ep": 2}, "hardware": {"gpus": 2},
    "workload": {"batch": 2, "sequence": 8}})");
}

TEST(OpsCommand, PrintsEachShapeOnceAndTheSumOfTheStep) {
  const CommandResult run = shardproof("ops " + small_plan() + " --repetitions 1");

  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, StartsWith("small: rank 0, prefill, bf16, one thread\n# op "));
  EXPECT_THAT(run.out, HasSubstr("m 16, n 32, k 64"));
  EXPECT_THAT(run.out, HasSubstr("attention.q, attention.k, attention.v"));
  EXPECT_THAT(run.out, HasSubstr("\nstep: "));
  EXPECT_THAT(run.err, IsEmpty());
}

TEST(OpsCommand, WritesRepetitionsAsGoogleBenchmarkDoes) {
  const CommandResult run = shardproof("ops " + small_plan() + " --repetitions 2 --format exact --rank 1 --json -");

  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto document = nlohmann::json::parse(run.out);
  EXPECT_EQ(document["schema"], "shardproof.ops/1");
  EXPECT_EQ(document["context"]["rank"], 1);
  EXPECT_EQ(document["context"]["format"], "exact");
  int products = 0;
  for (const auto& entry : document["benchmarks"]) {
    EXPECT_EQ(entry["run_type"], "iteration");
    EXPECT_EQ(entry["time_unit"], "ns");
    EXPECT_GT(entry["cpu_time"], 0);
    if (entry["run_name"] == "linear/m:16/n:32/k:64") ++products;
  }
  EXPECT_EQ(products, 2);
}

TEST(OpsCommand, TimesADecodeStepOverTheCache) {
  const CommandResult run = shardproof("ops " + small_plan() + " --phase decode --repetitions 1");

  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.err, IsEmpty());
  EXPECT_THAT(run.out, HasSubstr("2 x 1 tokens to 9 keys, heads 2/2 x 16"));
  EXPECT_THAT(run.out, HasSubstr("m 2, n 32, k 64"));
}

TEST(OpsCommand, RefusesWhatItCannotTime) {
  const std::string plan = small_plan();
  for (const auto& [arguments, text] :
       {std::pair{plan + " --rank 2", "--rank: 2 is not among the plan's ranks, 0 to 1"},
        {plan + " --rank -1", "--rank"},
        {plan + " --repetitions 0", "--repetitions"},
        {plan + " --format int8", "--format"},
        {plan + " --phase training", "--phase"},
        {plan + " --json .", "--json: '.' is a directory"},
        {std::string("nowhere.json"), "nowhere.json"}}) {
    const CommandResult run = shardproof("ops " + arguments);

    EXPECT_EQ(run.exit_code, 2) << arguments;
    EXPECT_THAT(run.err, HasSubstr(text)) << arguments;
    EXPECT_THAT(run.out, IsEmpty()) << arguments;
  }
}

}  // namespace
}  // namespace shardproof::testing
