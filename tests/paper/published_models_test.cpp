// The config files of plans/models/configs, as their publishers wrote them.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "emu/input/json_value.h"
#include "emu/judge/verify.h"
#include "emu/model/families/load.h"
#include "emu/model/tensors.h"
#include "emu/plan/load.h"
#include "emu/plan/runnable.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;

fs::path models() {
  return fs::path(SHARDPROOF_SOURCE_DIR) / "plans" / "models";
}

struct Published {
  const char* name;
  /// Parameters of the class of Transformers 5.24 on the meta device, with the biases of the experts' choice, which are
  /// buffers there; without layers that predict further tokens.
  std::int64_t parameters;
};

constexpr Published kPublished[] = {
    {"deepseek-v2-lite", 15'706'484'224}, {"deepseek-v3", 671'026'419'200},        {"glm-4.5", 352'797'829'024},
    {"gpt-oss-120b", 116'829'156'672},    {"granite-3.0-3b-a800m", 3'298'793'472}, {"kimi-k2", 1'026'408'232'448},
    {"llama-3.1-70b", 70'553'706'496},    {"mixtral-8x7b", 46'702'792'704},        {"olmoe-1b-7b", 6'919'161'856},
    {"phi3.5-moe", 41'873'153'344},       {"qwen1.5-moe-a2.7b", 14'315'784'192},   {"qwen2.5-7b", 7'615'616'512},
    {"qwen3-235b-a22b", 235'093'634'560}, {"qwen3-30b-a3b", 30'532'122'624},
};

TEST(PublishedModels, HaveTheParametersThatTransformersCounts) {
  for (const Published& published : kPublished) {
    const fs::path path = models() / "configs" / (std::string(published.name) + ".json");
    const FileText file = read_file(path, 1 << 20);
    ASSERT_TRUE(file.text.has_value()) << path;
    std::vector<Problem> problems;

    const LoadedModel loaded = read_model(parse_json(*file.text, path.string(), 16).value.value(), "model", problems);

    for (const Problem& problem : problems) ADD_FAILURE() << published.name << ": " << problem.field << problem.message;
    EXPECT_EQ(model_parameters(loaded.model).total(), published.parameters) << published.name;
  }
}

TEST(PublishedModels, PassInTheLayoutsOfTheirPlans) {
  int plans = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(models())) {
    if (entry.path().extension() != ".json") continue;
    ++plans;
    const LoadedPlan loaded = load_plan(entry.path());
    ASSERT_TRUE(loaded.plan.has_value()) << entry.path() << loaded.problems.front().message;
    Plan plan = *loaded.plan;
    const Runnable whole = make_runnable(plan);
    ASSERT_TRUE(whole.plan.has_value()) << entry.path() << whole.problems.front().message;
    // Each kind of layer once or twice, in as many stages.
    LayerList layers;
    const LayerList& all = plan.model.layers;
    for (std::size_t kind = 0; kind < all.kinds().size(); ++kind) {
      for (int i = 0; i < 2; ++i) layers.push_back(all.kinds()[kind]);
    }
    plan.model.layers = layers;
    plan.workload.lengths.resize(
        static_cast<std::size_t>(std::max<std::int64_t>(8, plan.parallel.dp * plan.workload.microbatches)));

    const Plan small = make_runnable(plan).plan.value().scaled({}).plan();
    for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
      const VerifyReport report = verify(small, {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << entry.path() << " in " << ops::to_string(format);
    }
  }
  EXPECT_EQ(plans, 11);
}

TEST(PublishedModels, KeepWhatTheyAreAboutWhenTheyAreScaled) {
  const Plan deepseek = load_plan(models() / "deepseek-v3.json").plan.value();
  const Plan oss = load_plan(models() / "gpt-oss-120b.json").plan.value();

  const Plan small = make_runnable(deepseek).plan.value().scaled({}).plan();
  const Plan small_oss = make_runnable(oss).plan.value().scaled({}).plan();

  const AttentionSpec& latent = small.model.layers[0].attention;
  EXPECT_GE(latent.rope.dim, 8);
  EXPECT_GT(latent.head_dim, latent.rope.dim);
  EXPECT_LT(latent.kv_lora_rank, deepseek.model.layers[0].attention.kv_lora_rank);
  EXPECT_EQ(small.model.experts().groups, 8);
  EXPECT_EQ(small.model.experts().shared_intermediate_size, small.model.experts().intermediate_size);
  EXPECT_TRUE(small.model.layers[2].feed_forward.dense());
  EXPECT_FALSE(small.model.layers[3].feed_forward.dense());
  EXPECT_GT(small_oss.model.layers[0].attention.sliding_window, 0);
  EXPECT_LT(small_oss.model.layers[0].attention.sliding_window, std::ranges::max(small_oss.workload.lengths));
  EXPECT_EQ(small_oss.model.layers[1].attention.sliding_window, 0);
}

}  // namespace
}  // namespace shardproof
