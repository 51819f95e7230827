// Which tokens latent attention computes in its absorbed form, and what a plan may say of it.
#include "emu/plan/latent_form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "emu/plan/load.h"
#include "emu/plan/save.h"
#include "emu/plan/token_map.h"
#include "emu/plan/validate.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kLatentModel =
    R"("model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
       "v_head_dim": 4, "intermediate_size": 16, "moe_intermediate_size": 8, "n_routed_experts": 4,
       "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
       "vocab_size": 32)";
constexpr const char* kGroupedModel =
    R"("hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
       "intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 32)";

LoadedPlan latent_loaded(const std::string& model, const std::string& parallel, const std::string& workload) {
  const std::string text =
      R"({"model": {)" + model + R"(}, "parallel": )" + parallel + R"(, "workload": )" + workload + "}";
  LoadedPlan plan = parse_plan(text, "plan.json", ".");
  if (plan.plan) plan.problems = validate(*plan.plan);
  return plan;
}

Plan latent_parsed(const std::string& workload, const std::string& model = kLatentModel,
                   const std::string& parallel = "{}") {
  const LoadedPlan plan = latent_loaded(model, parallel, workload);
  for (const Problem& problem : plan.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return plan.plan.value_or(Plan{});
}

std::string latent_problems(const std::string& model, const std::string& parallel, const std::string& workload) {
  std::string text;
  for (const Problem& problem : latent_loaded(model, parallel, workload).problems) {
    text += problem.field + ": " + problem.message + "\n";
  }
  return text;
}

constexpr const char* kLatentRequests = R"({"requests": [{"prompt": 3, "output": 3}, {"prompt": 2}]})";

TEST(LatentForms, AreAbsorbedAfterPromptsAndPlainBefore) {
  EXPECT_THAT(absorbed_rows(latent_parsed(kLatentRequests)),
              ElementsAre(false, false, false, true, true, false, false));
  EXPECT_TRUE(has_absorbed(latent_parsed(kLatentRequests)));
}

TEST(LatentForms, ArePlainWhereNothingIsDecodedOrThePlanSaysSoOrHeadsHaveKeysOfTheirOwn) {
  EXPECT_THAT(absorbed_rows(latent_parsed(R"({"batch": 2, "sequence": 4})")), IsEmpty());
  EXPECT_THAT(absorbed_rows(latent_parsed(R"({"requests": [{"prompt": 3, "output": 1}]})")), IsEmpty());
  EXPECT_THAT(absorbed_rows(latent_parsed(R"({"requests": [{"prompt": 3, "output": 4}], "latent_decode": "plain"})")),
              IsEmpty());
  EXPECT_THAT(absorbed_rows(latent_parsed(kLatentRequests, kGroupedModel)), IsEmpty());
}

TEST(LatentForms, HangOnATokensPositionHoweverStepsAreCut) {
  const Plan plan = latent_parsed(R"({"requests": [{"prompt": 3, "output": 4}],
      "steps": [[{"request": 0, "tokens": 1}], [{"request": 0, "tokens": 4}], [{"request": 0, "tokens": 1}]]})");
  const TokenMap tokens(plan.parallel, plan.workload);

  EXPECT_THAT(tokens.rank_tokens({}, 0).plain, ElementsAre(1));
  EXPECT_THAT(tokens.rank_tokens({}, 1).plain, ElementsAre(2));
  EXPECT_THAT(tokens.rank_tokens({}, 2).plain, ElementsAre(0));
}

TEST(LatentForms, AreWrittenAsTheyAreRead) {
  for (const char* form : {"absorbed", "plain"}) {
    const Plan plan =
        latent_parsed(std::string(R"({"requests": [{"prompt": 3, "output": 4}], "latent_decode": ")") + form + "\"}");
    ASSERT_TRUE(plan.workload.latent_decode.has_value());
    EXPECT_EQ(std::string(to_string(*plan.workload.latent_decode)), form);
    EXPECT_THAT(plan_json(plan), HasSubstr(std::string("\"latent_decode\": \"") + form + "\""));
  }
  EXPECT_THAT(plan_json(latent_parsed(kLatentRequests)), ::testing::Not(HasSubstr("latent_decode")));
}

TEST(LatentForms, AreRefusedWhereTheyMakeNoSense) {
  EXPECT_THAT(latent_problems(kLatentModel, "{}", R"({"latent_decode": "folded"})"),
              HasSubstr("workload.latent_decode: \"folded\"; \"absorbed\" or \"plain\""));
  EXPECT_THAT(latent_problems(kGroupedModel, "{}", R"({"latent_decode": "plain"})"),
              HasSubstr("workload.latent_decode: \"plain\", but no layer of the model has latent attention"));
  EXPECT_THAT(latent_problems(kLatentModel, R"({"cp": 2})", R"({"latent_decode": "absorbed"})"),
              HasSubstr("workload.latent_decode: \"absorbed\" beside cp 2"));
  EXPECT_EQ(latent_problems(kLatentModel, R"({"cp": 2})", R"({"latent_decode": "plain"})"), "");
}

}  // namespace
}  // namespace shardproof
