#include "emu/diagnose/idle_features.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "tests/support/random_plan.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::small_plan;

/// Of the features that no token shows.
std::vector<std::string> idle(const Plan& plan, const WeightSource* weights = nullptr) {
  std::vector<std::string> fields;
  for (const Problem& problem : idle_features(plan, prepare_reference(plan, ops::Format::exact, weights))) {
    fields.push_back(problem.field);
  }
  return fields;
}

using Fields = std::vector<std::string>;

TEST(IdleFeatures, OfMixtralAreNone) {
  EXPECT_EQ(idle(small_plan({.tp = 2, .dp = 2, .ep = 4})), Fields{});
}

TEST(IdleFeatures, MakeAVerdictInconclusiveUnlessItIsNotAskedFor) {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});  // sequences of 8 tokens
  plan.model.layers.kind(0).attention.sliding_window = 8;

  const VerifyReport report = verify(plan, {.format = ops::Format::exact});

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  ASSERT_EQ(report.problems.size(), 1U);
  EXPECT_EQ(report.problems[0].field, "model.sliding_window");
  EXPECT_NE(report.problems[0].message.find("layer 0"), std::string::npos) << report.problems[0].message;
  EXPECT_EQ(verify(plan, {.format = ops::Format::exact, .require_features = false}).verdict, Verdict::pass);
  plan.model.layers.kind(0).attention.sliding_window = 7;
  EXPECT_EQ(verify(plan, {.format = ops::Format::exact}).verdict, Verdict::pass);
}

TEST(IdleFeatures, AreNotWindowsAsWideAsTheModelsLongestSequence) {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
  plan.model.layers.kind(0).attention.sliding_window = 64;
  plan.model.max_position_embeddings = 64;

  EXPECT_EQ(idle(plan), Fields{});
  plan.model.max_position_embeddings = 65;
  EXPECT_EQ(idle(plan), Fields{"model.sliding_window"});
}

/// A feature with weights of the generator shows; with a value that leaves it out of the mathematics it does not.
TEST(IdleFeatures, AreEachFoundWhereAValueLeavesThemOut) {
  struct Case {
    const char* field;
    void (*add)(ModelConfig& model, LayerSpec& layer);
    /// Leaves it out, but for its name.
    void (*stop)(ModelConfig& model, LayerSpec& layer);
    Weight zero = Weight::embedding;  ///< that takes its place where `stop` is null
  };
  const Case cases[] = {
      {"model.sinks", [](ModelConfig&, LayerSpec& layer) { layer.attention.sinks = true; }, nullptr,
       Weight::attention_sinks},
      {"model.attention_bias", [](ModelConfig&, LayerSpec& layer) { layer.attention.qkv_bias = true; }, nullptr,
       Weight::attention_v_bias},
      {"model.selection_bias",
       [](ModelConfig&, LayerSpec& layer) {
         layer.feed_forward.scoring = Scoring::sigmoid;
         layer.feed_forward.selection_bias = true;
       },
       nullptr, Weight::router_selection_bias},
      {"model.n_group, topk_group",
       [](ModelConfig&, LayerSpec& layer) {
         layer.feed_forward.num_experts = 8;
         layer.feed_forward.groups = 4;  // of two experts, from one of which both are chosen
       },
       [](ModelConfig&, LayerSpec& layer) { layer.feed_forward.top_k = 1; }},
      {"model.residual_multiplier", [](ModelConfig& model, LayerSpec&) { model.residual_multiplier = 0.5; },
       [](ModelConfig& model, LayerSpec&) { model.residual_multiplier = 1 + 0x1p-40; }},
      {"model.rope_scaling",
       [](ModelConfig&, LayerSpec& layer) {
         layer.attention.rope.type = RopeType::linear;
         layer.attention.rope.factor = 4;
       },
       [](ModelConfig&, LayerSpec& layer) { layer.attention.rope.factor = 1; }},
      {"model.swiglu_limit",
       [](ModelConfig&, LayerSpec& layer) {
         layer.feed_forward.expert_bias = true;
         layer.feed_forward.swiglu_limit = 7;
       },
       [](ModelConfig&, LayerSpec& layer) { layer.feed_forward.swiglu_limit = 1000; }},
      {"model.clip_qkv", [](ModelConfig&, LayerSpec& layer) { layer.attention.clip_qkv = 0.5; },
       [](ModelConfig&, LayerSpec& layer) { layer.attention.clip_qkv = 1000; }},
  };
  for (const Case& one : cases) {
    Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
    one.add(plan.model, plan.model.layers.kind(0));
    EXPECT_EQ(idle(plan), Fields{}) << one.field;

    const testing::EditedWeights weights(plan.workload.seed,
                                         [&](const WeightSpec& spec, std::int64_t, std::int64_t, double value) {
                                           if (one.stop != nullptr || spec.weight != one.zero) return value;
                                           return one.zero == Weight::attention_sinks ? -1000.0 : 0.0;
                                         });
    if (one.stop != nullptr) one.stop(plan.model, plan.model.layers.kind(0));

    EXPECT_EQ(idle(plan, &weights), Fields{one.field});
  }
}

TEST(IdleFeatures, OfSequencesOfOneTokenAreNotWhatTurnsWithThePosition) {
  Plan plan = small_plan({.tp = 2, .ep = 2});
  plan.model.layers.kind(0).attention.rope.type = RopeType::linear;
  plan.model.layers.kind(0).attention.rope.factor = 4;
  plan.workload.lengths = {1, 1, 1, 1};

  EXPECT_EQ(idle(plan), Fields{});
}

}  // namespace
}  // namespace shardproof
