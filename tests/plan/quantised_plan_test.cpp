// Plans of quantised models: what their config says, what is counted, and where a slice may not be cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/plan/layout.h"
#include "emu/plan/load.h"
#include "emu/plan/save.h"
#include "emu/plan/validate.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

LoadedPlan quantised(const std::string& quantisation, const std::string& workload = "{}") {
  return parse_plan(R"({"model": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
      "num_key_value_heads": 2, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2,
      "vocab_size": 100, "quantization_config": )" +
                        quantisation + R"(}, "parallel": {"dp": 2, "ep": 2}, "workload": )" + workload + "}",
                    "plan.json", ".");
}

struct Expected {
  const char* text;
  QuantisedFormat format;
  std::int64_t block;
  bool zero_points, attention, experts;
};
constexpr Expected kConfigs[] = {
    {R"({"quant_method": "fp8", "weight_block_size": [32, 32]})", QuantisedFormat::fp8, 32, false, true, true},
    {R"({"quant_method": "fp8"})", QuantisedFormat::fp8, 0, false, true, true},
    {R"({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})", QuantisedFormat::mxfp4, 32, false, false,
     true},
    {R"({"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": true})", QuantisedFormat::int4, 16, true,
     true, true},
    {R"({"quant_method": "gptq", "bits": 8, "group_size": -1})", QuantisedFormat::int8, 0, true, true, true},
    {R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int",
         "group_size": 32, "strategy": "group"}}}, "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]})",
     QuantisedFormat::int4, 32, false, false, true},
    {R"({"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"})", QuantisedFormat::int4,
     16, true, true, true},
    {R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int",
         "group_size": 32, "symmetric": false}}}})",
     QuantisedFormat::int4, 32, true, true, true},
    {R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int",
         "group_size": null, "strategy": "channel"}}}})",
     QuantisedFormat::int4, 0, false, true, true},
    {R"({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv"})", QuantisedFormat::int4, 16, true,
     true, true},
    {R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8,
         "type": "float"}}}, "ignore": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.experts.0.w1"]})",
     QuantisedFormat::fp8, 0, false, true, false},
};

TEST(QuantisedPlans, AreReadAsTheirMethodsSayThemAndSaved) {
  for (const Expected& expected : kConfigs) {
    const LoadedPlan loaded = quantised(expected.text);
    ASSERT_TRUE(loaded.plan) << expected.text << loaded.problems.front().message;
    const ModelConfig& model = loaded.plan->model;
    const LoadedPlan again = parse_plan(plan_json(*loaded.plan), "again.json", ".");

    EXPECT_EQ(model.quantisation.format, expected.format) << expected.text;
    EXPECT_EQ(model.weight_block, expected.block) << expected.text;
    EXPECT_EQ(model.quantisation.zero_points, expected.zero_points) << expected.text;
    EXPECT_EQ(model.quantisation.attention, expected.attention) << expected.text;
    EXPECT_EQ(model.quantisation.experts, expected.experts) << expected.text;
    EXPECT_THAT(loaded.plan->model_notes, ::testing::Contains(HasSubstr("stores them")));
    ASSERT_TRUE(again.plan) << again.problems.front().message;
    EXPECT_EQ(again.plan->model, model) << plan_json(*loaded.plan);
  }
}

TEST(QuantisedPlans, AreRefusedWhereTheConfigIsNone) {
  const auto refused = [](const std::string& text, const std::string& field) {
    const LoadedPlan loaded = quantised(text);
    EXPECT_FALSE(loaded.plan) << text;
    EXPECT_THAT(loaded.problems, ::testing::Contains(::testing::Field(&Problem::field, field))) << text;
  };

  refused(R"({"quant_method": "fp8", "weight_block_size": [128, 64]})", "model.quantization_config.weight_block_size");
  refused(R"({"quant_method": "awq", "bits": 3})", "model.quantization_config.bits");
  refused(R"({"quant_method": "awq", "group_size": "all"})", "model.quantization_config.group_size");
  refused(R"({"quant_method": "awq", "version": 2})", "model.quantization_config.version");
  refused(R"({"quant_method": "compressed-tensors", "config_groups": []})", "model.quantization_config.config_groups");
  refused(R"({"quant_method": "fp8", "modules_to_not_convert": "lm_head"})",
          "model.quantization_config.modules_to_not_convert");
}

/// The files of gpt-oss-120b on the hub hold so many bytes (total_size of its index).
TEST(QuantisedPlans, CountTheBytesOfAPublishedCheckpoint) {
  LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/models/gpt-oss-120b.json");
  ASSERT_TRUE(loaded.plan);
  const Plan& plan = *loaded.plan;

  const WeightBytes bytes =
      held_weight_bytes(make_layout(plan.model, Mesh(Parallel{}), 0), plan.model, dtype_bytes(plan.model));

  EXPECT_EQ(bytes.total(), 65'248'815'744.0);
  EXPECT_EQ(bytes.scales, 36.0 * 128 * 3 * 2880 * 90);
}

TEST(QuantisedPlans, CountACacheInItsOwnFormat) {
  const LoadedPlan half = quantised(R"({"quant_method": "fp8"})", R"({"kv_cache_dtype": "fp8_e4m3"})");
  const LoadedPlan whole = quantised(R"({"quant_method": "fp8"})", R"({"kv_cache_dtype": "auto"})");
  const LoadedPlan none = quantised(R"({"quant_method": "fp8"})", R"({"kv_cache_dtype": "int2"})");

  ASSERT_TRUE(half.plan && whole.plan);
  EXPECT_EQ(rank_figures(*half.plan)[0].kv_cache_bytes, rank_figures(*whole.plan)[0].kv_cache_bytes / 2);
  EXPECT_GT(rank_figures(*half.plan)[0].kv_cache_bytes, 0);
  EXPECT_EQ(parse_plan(plan_json(*half.plan), "again.json", ".").plan->workload.kv_cache_dtype, "fp8_e4m3");
  ASSERT_FALSE(none.plan);
  EXPECT_EQ(none.problems.front().field, "workload.kv_cache_dtype");
}

TEST(QuantisedPlans, TakeTheFormatOfTheCacheFromTheModelWhereTheWorkloadSaysNone) {
  const std::string method =
      R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8,
      "type": "float"}}}, "kv_cache_scheme": )";
  const std::string scheme = R"({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false}})";
  const LoadedPlan taken = quantised(method + scheme),
                   stated = quantised(method + scheme, R"({"kv_cache_dtype": "bfloat16"})");
  const LoadedPlan none = quantised(method + "null}"),
                   refused = quantised(method + R"({"num_bits": 4, "type": "float"}})");
  const LoadedPlan integers = quantised(method + R"({"num_bits": 8, "type": "int"}})");

  ASSERT_TRUE(taken.plan && stated.plan && none.plan);
  EXPECT_EQ(taken.plan->workload.kv_cache_dtype, "fp8");
  EXPECT_THAT(taken.plan->defaults, ::testing::Contains(HasSubstr("kv_cache_scheme")));
  EXPECT_EQ(stated.plan->workload.kv_cache_dtype, "bfloat16");
  EXPECT_EQ(none.plan->workload.kv_cache_dtype, "");
  EXPECT_EQ(integers.plan->workload.kv_cache_dtype, "int8");
  EXPECT_EQ(parse_plan(plan_json(*integers.plan), "again.json", ".").plan->model, integers.plan->model);
  EXPECT_EQ(parse_plan(plan_json(*taken.plan), "again.json", ".").plan->model, taken.plan->model);
  ASSERT_FALSE(refused.plan);
  EXPECT_EQ(refused.problems.front().field, "model.quantization_config.kv_cache_scheme.num_bits");
}

/// Messages of the plan's problems that are about blocks.
std::vector<std::string> cut_blocks(const Plan& plan) {
  std::vector<std::string> messages;
  for (const Problem& problem : validate(plan)) {
    if (problem.message.find("cuts the blocks") != std::string::npos) messages.push_back(problem.message);
  }
  return messages;
}

TEST(QuantisedPlans, AreRefusedWhereTpCutsABlockOfTheAttentionsWeights) {
  Plan plan = testing::small_plan({.tp = 4});
  plan.model.quantisation = {.method = "fp8", .format = QuantisedFormat::fp8, .mlp = false, .experts = false};
  plan.model.weight_block = 128;
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.attention.heads = 8;
    layer.attention.kv_heads = 2;
    layer.attention.head_dim = 96;
  });

  const std::vector<std::string> cuts = cut_blocks(plan);

  ASSERT_EQ(cuts.size(), 4U);  // output, queries; keys and values of one head a rank
  EXPECT_THAT(cuts[0], HasSubstr("768 columns of the attention's output / tp 4 = 192, which cuts the blocks of 128"));
  EXPECT_THAT(cuts[0], HasSubstr("3 or 6 would do"));
  EXPECT_THAT(cuts[2], HasSubstr("192 rows of the keys / tp 2 = 96"));
  plan.model.quantisation.format = QuantisedFormat::int4;  // whose groups lie along columns alone
  EXPECT_EQ(cut_blocks(plan).size(), 1U);
  plan.model.quantisation.attention = false;
  EXPECT_TRUE(cut_blocks(plan).empty());
}

}  // namespace
}  // namespace shardproof
