// Greedy decoding on the golden checkpoints, held to what Transformers' generate() makes of the same prompts.
#include "emu/judge/generate.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "emu/plan/validate.h"
#include "emu/weights/checkpoint.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using Ids = std::vector<std::vector<std::int32_t>>;

const char* const kGenerated[] = {"grouped",
                                  "tied_top1",
                                  "sharded_one_kv_head",
                                  "bfloat16_all_experts",
                                  "float16_tied",
                                  "families/llama3_scaled",
                                  "families/llama_linear_biased",
                                  "families/mistral_window",
                                  "families/qwen2_later_windows",
                                  "families/qwen3",
                                  "families/mixtral_window",
                                  "families/qwen3_moe_mixed",
                                  "families/qwen2_moe_shared",
                                  "families/deepseek_v3",
                                  "families/deepseek_v3_mscale",
                                  "families/deepseek_v2_groups",
                                  "families/glm4_moe",
                                  "families/gpt_oss"};

Plan plan_of(const Checkpoint& checkpoint, const Ids& prompts, const Ids& outputs) {
  Plan plan;
  plan.model = checkpoint.model();
  const bool three_heads = plan.model.layers[0].attention.kv_heads == 3;
  if (three_heads) {
    plan.parallel = {.tp = 3, .edp = 3, .sp = true};
  } else {
    plan.parallel = {.tp = 2, .ep = plan.model.dense() ? 1 : 2, .edp = plan.model.dense() ? 2 : 1, .sp = true};
  }
  plan.workload.serving = Serving{.requests = {}, .max_tokens_per_step = 7, .kv_block_size = 2, .steps = {}};
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    plan.workload.serving->requests.push_back({.prompt = std::ssize(prompts[i]), .output = std::ssize(outputs[i])});
    // What comes out is not known: of the ids that the plan names, those of the prompt count.
    std::vector<std::int32_t>& ids = plan.workload.token_ids.emplace_back(prompts[i]);
    ids.resize(prompts[i].size() + outputs[i].size() - 1, 0);
  }
  set_lengths(plan.workload);
  return plan;
}

class GeneratedTokens : public ::testing::TestWithParam<const char*> {};

TEST_P(GeneratedTokens, AreThoseOfTransformers) {
  const auto folder = std::filesystem::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden" / GetParam();
  const Checkpoint checkpoint(folder);
  std::ifstream file(folder / "generated.json");
  const auto golden = nlohmann::json::parse(file);
  const auto prompts = golden["prompts"].get<Ids>(), outputs = golden["outputs"].get<Ids>();
  const Plan plan = plan_of(checkpoint, prompts, outputs);
  ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

  const Generation made =
      generate(*make_runnable(plan).plan, {.format = ops::Format::fp32, .threads = 2, .weights = &checkpoint});

  ASSERT_FALSE(made.failed.has_value());
  EXPECT_FALSE(made.contradicts_itself());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    ASSERT_EQ(made.outputs[i].size(), outputs[i].size());
    for (std::size_t place = 0; place < outputs[i].size(); ++place) {
      EXPECT_EQ(made.outputs[i][place].id, outputs[i][place]) << "request " << i << " token " << place;
      EXPECT_FALSE(made.outputs[i][place].close()) << "request " << i << " token " << place;
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<const char*>& tested) {
  std::string name = tested.param;
  return name.substr(name.find('/') == std::string::npos ? 0 : name.find('/') + 1);
}

INSTANTIATE_TEST_SUITE_P(Golden, GeneratedTokens, ::testing::ValuesIn(kGenerated), name_of);

TEST(Generate, IsRefusedWithoutRequestsOrWithoutRounding) {
  Plan plan = testing::small_plan({.tp = 2, .edp = 2});
  EXPECT_THROW(generate(*make_runnable(plan).plan, {.format = ops::Format::fp32}), std::invalid_argument);

  plan.workload.serving = Serving{.requests = {{.prompt = 3, .output = 2}}, .steps = {}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  EXPECT_THROW(generate(*make_runnable(plan).plan, {.format = ops::Format::exact}), std::invalid_argument);
}

}  // namespace
}  // namespace shardproof
