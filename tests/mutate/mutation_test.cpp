// What the verifier detects and names, on a few plans; mutation_nightly.cpp does the same on many.
#include "emu/mutate/mutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <ostream>
#include <set>
#include <string>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/plan/load.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "tests/mutate/mutation_support.h"
#include "tests/support/runnable.h"
#include "tests/support/shipped_plans.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::mutable_plans;
using testing::report_of;
using testing::runnable;
using testing::small_plan;

TEST(Mutations, AreThirtyKindsOrMoreWithDistinctNames) {
  std::set<std::string_view> names;
  for (const MutationKind& kind : mutation_kinds()) {
    EXPECT_FALSE(kind.description.empty());
    EXPECT_TRUE(names.insert(kind.name).second) << kind.name;
  }

  EXPECT_GE(names.size(), 30U);
}

/// Two replicas whose requests come, grow and go; one of them has none left in the last steps.
Plan serving_plan() {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
  plan.workload.serving = Serving{.requests = {{.prompt = 7, .output = 5}, {.prompt = 5, .output = 3}, {.prompt = 4}},
                                  .max_tokens_per_step = 6,
                                  .kv_block_size = 2,
                                  .steps = {}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  return plan;
}

/// The same, of prompts in chunks of several tokens.
Plan chunked(Plan plan) {
  plan.workload.serving->max_tokens_per_step = 4;
  return plan;
}

/// Two ranks of tp on each key-value head, which share its cache out.
Plan dcp_plan() {
  Plan plan = serving_plan();
  plan.parallel = {.tp = 4, .ep = 4, .dcp = 2};
  plan.workload.serving->kv_block_size = 4;
  return plan;
}

/// Prompts that begin alike, of which one is done while another still reads its blocks; a replica that runs padding.
Plan prefix_plan() {
  Plan plan = serving_plan();
  plan.workload.serving = Serving{
      .requests = {{.prompt = 7, .output = 2, .prefix = 7}, {.prompt = 9, .output = 5, .prefix = 7}, {.prompt = 4}},
      .kv_block_size = 4,
      .prefix_sharing = true,
      .steps = {}};
  plan.workload.idle = Idle::pad;
  set_lengths(plan.workload);
  return plan;
}

/// Latent attention, of which ranks have two heads.
Plan latent_plan() {
  Plan plan = serving_plan();
  plan.parallel = {.tp = 2, .dp = 2, .ep = 4};
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.attention.kv_heads = layer.attention.heads;
    layer.attention.head_dim = 6;
    layer.attention.v_head_dim = 4;
    layer.attention.rope.dim = 2;
    layer.attention.kv_lora_rank = 7;
  });
  return plan;
}

/// A dense layer, then layers with a window, and experts in groups.
Plan mixed_plan() {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4, .sp = true});
  LayerSpec experts = plan.model.layers[0];
  LayerSpec dense = experts;
  dense.feed_forward = {.intermediate_size = 8};
  experts.attention.sliding_window = 2;
  experts.feed_forward.scoring = Scoring::sigmoid;
  experts.feed_forward.selection_bias = true;
  experts.feed_forward.groups = 2;
  LayerList layers(1, dense);
  for (std::int64_t i = 1; i < plan.model.layers.size(); ++i) layers.push_back(experts);
  plan.model.layers = layers;
  return plan;
}

TEST(Mutations, EachAppliesToSomePlan) {
  std::set<std::string_view> unused;
  for (const MutationKind& kind : mutation_kinds()) unused.insert(kind.name);
  std::vector<Plan> plans{small_plan({.tp = 4, .pp = 4, .ep = 2, .etp = 2}), small_plan({.tp = 4, .ep = 1, .etp = 4}),
                          small_plan({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 1, .edp = 2}),
                          small_plan({.tp = 2, .dp = 2, .ep = 4, .sp = true}),
                          small_plan({.tp = 2, .dp = 4, .ep = 2, .etp = 4})};
  plans.back().workload.lengths = {3, 3};
  plans.back().workload.microbatches = 1;
  plans.push_back(small_plan({.tp = 2, .pp = 2, .edp = 2}));
  plans.back().model.tie_word_embeddings = true;

  plans.push_back(small_plan({.tp = 4, .ep = 2, .etp = 2}));
  plans.back().model.layers.kind(0).feed_forward.shared_intermediate_size = 8;

  plans.back().model.weight_block = 2;
  plans.push_back(small_plan({.tp = 4, .ep = 2, .etp = 2, .overlap = Overlap::two_batch}));
  plans.push_back(small_plan({.tp = 2, .dp = 2, .ep = 4, .dispatch = DispatchComm::all_gather}));
  plans.push_back(small_plan({.tp = 4, .ep = 4, .dispatch = DispatchComm::all_reduce}));
  plans.back().parallel.experts = {.redundant = 4};
  plans.push_back(small_plan({.tp = 2, .edp = 2}));
  plans.back().model.layers.kind(0).attention.query_key_norm = QueryKeyNorm::full;
  plans.back().model.layers.kind(0).attention.sinks = true;
  plans.push_back(mixed_plan());
  plans.push_back(serving_plan());
  plans.push_back(chunked(serving_plan()));
  plans.push_back(dcp_plan());
  plans.push_back(prefix_plan());
  plans.push_back(latent_plan());
  plans.push_back(small_plan({.tp = 2, .dp = 2, .ep = 4}));
  plans.back().parallel.experts = {.redundant = 4, .map = ExpertPlacement::Map::round_robin};
  plans.push_back(small_plan({.tp = 2, .cp = 2, .ep = 4}));
  plans.back().workload.lengths = {9, 7};
  plans.back().workload.microbatches = 1;

  for (const Plan& plan : plans) {
    ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
    const MutablePlan subject(plan, prepare_reference(plan, ops::Format::exact).expected);
    for (const MutationKind& kind : mutation_kinds()) {
      const std::vector<Mutation> instances = kind.instances(subject, 2);
      EXPECT_LE(instances.size(), kind.of == MutationClass::rounding ? 6U : 2U);  // in each of three formats
      if (!instances.empty()) unused.erase(kind.name);
    }
  }

  EXPECT_TRUE(unused.empty()) << *unused.begin();
}

TEST(Mutations, ANonexistentExpertIsAnErrorOfItsRankNotACrash) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});

  const MutationScore score =
      run_mutations(runnable(plan), {.wanted = [](std::string_view kind) { return kind == "expert_nonexistent"; }});

  ASSERT_FALSE(score.results.empty());
  for (const MutationResult& result : score.results) {
    EXPECT_EQ(result.verdict, Verdict::mismatch);
    EXPECT_EQ(result.cause.name, "rank_error");
    EXPECT_NE(result.cause.evidence.find("expert 4"), std::string::npos) << result.cause.evidence;
  }
}

bool is_sharding(std::string_view name) {
  return std::ranges::find(mutation_kinds(), name, &MutationKind::name)->of == MutationClass::sharding;
}

TEST(Mutations, OfGeneratedPlansAreDetectedAndNamed) {
  MutationCounts total;
  std::string report;
  for (const Plan& plan : mutable_plans(8, 16)) {
    const MutationScore score = run_mutations(runnable(plan), {.per_kind = 1});
    total.add(score.counts(MutationClass::sharding));
    total.add(score.counts(MutationClass::rounding));
    report += report_of(score);
  }

  EXPECT_EQ(total.missed, 0) << report;
  EXPECT_GE(total.detected, 150);
  EXPECT_GE(static_cast<double>(total.tap_right), 0.98 * static_cast<double>(total.detected)) << report;
  EXPECT_GE(static_cast<double>(total.cause_right), 0.90 * static_cast<double>(total.detected)) << report;
}

// In a float format each op is judged on the run's own inputs, and its steps are taps: the same bugs, in the same ops.
TEST(Mutations, OfGeneratedPlansAreDetectedAndNamedInFloatFormats) {
  for (const ops::Format format : {ops::Format::bf16, ops::Format::fp16, ops::Format::fp32, ops::Format::fp64}) {
    MutationCounts total;
    std::string report;
    std::vector<Plan> plans = mutable_plans(4, 8);
    if (format == ops::Format::bf16) plans.push_back(testing::serving(plans.back(), 3));
    for (const Plan& plan : plans) {
      const MutationScore score =
          run_mutations(runnable(plan), {.per_kind = 1, .format = format, .wanted = is_sharding});
      total.add(score.counts(MutationClass::sharding));
      report += report_of(score);
    }

    EXPECT_EQ(total.missed, 0) << ops::to_string(format) << report;
    EXPECT_GE(total.detected, 80);
    EXPECT_GE(static_cast<double>(total.tap_right), 0.98 * static_cast<double>(total.detected)) << report;
    EXPECT_GE(static_cast<double>(total.cause_right), 0.98 * static_cast<double>(total.detected)) << report;
  }
}

/// Plans of the architecture over two ranks of tp or more, which pass.
std::vector<Plan> plans_over_tp(testing::Drawn drawn, std::size_t count) {
  std::vector<Plan> plans;
  for (std::uint64_t seed = testing::property_seed(); plans.size() < count; ++seed) {
    Plan plan = testing::random_family_plan(seed, drawn, 12);
    if (plan.parallel.tp < 2 || plan.workload.tokens() < 8) continue;
    if (verify(plan, {.format = ops::Format::exact, .diagnose = false}).verdict == Verdict::pass) {
      plans.push_back(std::move(plan));
    }
  }
  return plans;
}

TEST(Mutations, OfWhatFamiliesHaveBesideAreDetectedAndNamed) {
  struct Beside {
    testing::Drawn drawn;
    std::set<std::string_view> kinds;
  };
  for (const auto& [drawn, kinds] :
       {Beside{testing::Drawn::olmoe, {"query_key_norm_over_slice", "query_norm_of_another_head"}},
        Beside{testing::Drawn::gpt_oss, {"rotary_pairing", "sinks_of_another_head", "window_off_by_one"}},
        Beside{testing::Drawn::deepseek,
               {"dense_layer_run_as_moe", "masked_groups_zero", "rotary_pairing", "selection_bias_in_weights"}}}) {
    MutationCounts total;
    std::string report;
    for (const Plan& plan : plans_over_tp(drawn, 6)) {
      const MutationScore score = run_mutations(
          runnable(plan), {.wanted = [&named = kinds](std::string_view kind) { return named.contains(kind); }});
      total.add(score.counts(MutationClass::sharding));
      report += report_of(score);
    }

    EXPECT_GE(total.detected, 6) << to_string(drawn);
    EXPECT_EQ(total.missed, 0) << report;
    EXPECT_EQ(total.tap_right, total.detected) << report;
    EXPECT_EQ(total.cause_right, total.detected) << report;
  }
}

// The bugs that every model can have, in streams that are multiplied, normed with a mean and summed over tp besides.
TEST(Mutations, OfOlmoeGraniteAndPhiAreDetectedAndNamed) {
  MutationCounts total;
  std::string report;
  for (const testing::Drawn drawn : {testing::Drawn::olmoe, testing::Drawn::granitemoe, testing::Drawn::phimoe}) {
    for (const Plan& plan : plans_over_tp(drawn, 1)) {
      const MutationScore score = run_mutations(runnable(plan), {.per_kind = 1});
      total.add(score.counts(MutationClass::sharding));
      report += report_of(score);
    }
  }

  EXPECT_EQ(total.missed, 0) << report;
  EXPECT_GE(static_cast<double>(total.tap_right), 0.98 * static_cast<double>(total.detected)) << report;
  EXPECT_GE(static_cast<double>(total.cause_right), 0.90 * static_cast<double>(total.detected)) << report;
}

TEST(Mutations, OfTheEmbeddedPlanAreDetectedAndNamed) {
  const LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/tp4_ep4_pp4.json");
  ASSERT_TRUE(loaded.plan.has_value());

  const MutationScore score = run_mutations(runnable(*loaded.plan).scaled({}), {.per_kind = 1, .wanted = is_sharding});

  const MutationCounts counts = score.counts(MutationClass::sharding);
  EXPECT_EQ(counts.missed, 0) << report_of(score);
  EXPECT_GE(static_cast<double>(counts.tap_right), 0.98 * static_cast<double>(counts.detected)) << report_of(score);
  EXPECT_GE(static_cast<double>(counts.cause_right), 0.90 * static_cast<double>(counts.detected)) << report_of(score);
}

TEST(Mutations, OfServingPlansAreDetectedAndNamed) {
  std::vector<Plan> plans{serving_plan(), chunked(serving_plan()), dcp_plan()};
  for (const Plan& plan : mutable_plans(12, 8)) plans.push_back(testing::serving(plan, plan.workload.seed));
  MutationCounts total;
  std::string report;
  for (const Plan& plan : plans) {
    const MutationScore score = run_mutations(runnable(plan), {.wanted = [](std::string_view kind) {
                                                return kind.starts_with("cache_") || kind.starts_with("dcp_") ||
                                                       kind.starts_with("cp_") || kind.find("chunk") < 99 ||
                                                       kind.starts_with("idle") || kind == "expert_map_missing";
                                              }});
    total.add(score.counts(MutationClass::sharding));
    report += report_of(score);
  }

  EXPECT_EQ(total.missed, 0) << report;
  EXPECT_GE(total.detected, 100);
  EXPECT_EQ(total.tap_right, total.detected) << report;
  EXPECT_GE(static_cast<double>(total.cause_right), 0.98 * static_cast<double>(total.detected)) << report;
}

// A chunk and its past merged without their sums; what dcp exchanges sent over tp.
TEST(Mutations, OfPartsThatAreMergedWronglyAreDetectedAndNamedInEveryFormat) {
  struct Merged {
    Plan plan;
    std::set<std::string_view> kinds;
    std::int64_t instances;
  };
  for (const auto& [plan, kinds, instances] : {Merged{chunked(serving_plan()), {"cache_chunk_merged_without_lse"}, 1},
                                               Merged{chunked(latent_plan()), {"cache_chunk_merged_without_lse"}, 1},
                                               Merged{dcp_plan(), {"dcp_context_over_tp", "dcp_sums_over_tp"}, 2}}) {
    for (const ops::Format format :
         {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::fp16, ops::Format::bf16}) {
      const MutationScore score = run_mutations(
          runnable(plan),
          {.format = format, .wanted = [&named = kinds](std::string_view kind) { return named.contains(kind); }});

      const MutationCounts counts = score.counts(MutationClass::sharding);
      EXPECT_GE(counts.instances, instances) << ops::to_string(format);
      EXPECT_EQ(counts.detected, counts.instances) << report_of(score);
      EXPECT_EQ(counts.tap_right, counts.instances) << report_of(score);
      EXPECT_EQ(counts.cause_right, counts.instances) << report_of(score);
    }
  }
}

TEST(Mutations, OfAbsorbedLatentAttentionAreDetectedAndNamedForTheirCause) {
  std::vector<Plan> plans{latent_plan()};
  plans.push_back(latent_plan());
  plans.back().parallel = {.tp = 2, .ep = 2, .dcp = 2};
  for (const ops::Format format : {ops::Format::exact, ops::Format::fp32, ops::Format::bf16}) {
    for (const Plan& plan : plans) {
      const MutationScore score = run_mutations(runnable(plan), {.format = format, .wanted = [](std::string_view kind) {
                                                                   return kind.starts_with("absorbed_");
                                                                 }});

      const MutationCounts counts = score.counts(MutationClass::sharding);
      EXPECT_EQ(counts.instances, 6) << report_of(score);
      EXPECT_EQ(counts.detected, 6) << report_of(score);
      EXPECT_EQ(counts.tap_right, 6) << report_of(score);
      EXPECT_EQ(counts.cause_right, 6) << report_of(score);
    }
  }
}

// Latents are gathered for prompts, and attended to where they are kept after them.
TEST(Mutations, OfLatentsOverDcpAreDetectedAndNamed) {
  Plan plan = chunked(latent_plan());
  plan.parallel = {.tp = 4, .ep = 2, .etp = 2, .dcp = 2};
  plan.workload.serving->kv_block_size = 4;
  ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
  for (const ops::Format format : {ops::Format::exact, ops::Format::fp32, ops::Format::bf16}) {
    const MutationScore score =
        run_mutations(runnable(plan), {.format = format, .wanted = [](std::string_view kind) {
                                         return kind.starts_with("dcp_wrong") || kind == "absorbed_scale_of_latents";
                                       }});

    const MutationCounts counts = score.counts(MutationClass::sharding);
    EXPECT_GE(counts.instances, 4) << ops::to_string(format);
    EXPECT_EQ(counts.detected, counts.instances) << report_of(score);
    EXPECT_EQ(counts.tap_right, counts.instances) << report_of(score);
    EXPECT_EQ(counts.cause_right, counts.instances) << report_of(score);
  }
}

// What rounds more than it says is caught where sixteen to sixty-four ranks add up little errors.
TEST(RoundingMutations, AreDetectedAndPlacedOnSixteenToSixtyFourRanks) {
  for (const Parallel& parallel : {Parallel{.tp = 4, .dp = 4, .ep = 4, .etp = 4, .sp = true},
                                   Parallel{.tp = 4, .dp = 8, .ep = 4, .etp = 2, .edp = 4},
                                   Parallel{.tp = 4, .dp = 8, .pp = 2, .ep = 8, .etp = 4}}) {
    Plan plan = small_plan(parallel);
    plan.model.hidden_size = 64;
    plan.model.layers.edit([](LayerSpec& layer) {
      layer.attention.heads = 8;
      layer.attention.kv_heads = 4;
      layer.attention.head_dim = 8;
      layer.feed_forward.num_experts = 8;
      layer.feed_forward.intermediate_size = 32;
    });
    plan.workload.microbatches = 1;
    ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

    const MutationScore score = run_mutations(runnable(plan), {.wanted = [](std::string_view name) {
                                                return name.find("bf16") < 99 || name.find("rounded") < 99;
                                              }});

    const MutationCounts counts = score.counts(MutationClass::rounding);
    EXPECT_GE(counts.instances, 40);
    EXPECT_EQ(counts.equivalent, 0);
    EXPECT_EQ(counts.missed, 0) << report_of(score);
    EXPECT_EQ(counts.tap_right, counts.detected) << report_of(score);
    EXPECT_EQ(counts.cause_right, counts.detected) << report_of(score);
  }
}

/// The score of a verifier that always says the same.
MutationCounts score_of(Verdict verdict) {
  const MutationScore score =
      run_mutations(runnable(small_plan({.tp = 2, .dp = 2, .ep = 4})),
                    {.per_kind = 1, .verifier = [&](const RunnablePlan& plan, const VerifyOptions& options) {
                       VerifyReport report = verify(plan, options);
                       report.verdict = verdict;
                       return report;
                     }});
  MutationCounts counts = score.counts(MutationClass::sharding);
  counts.add(score.counts(MutationClass::rounding));
  return counts;
}

TEST(MutationScores, AreZeroForAVerifierThatPassesEverythingOrSaysNothing) {
  for (const Verdict verdict : {Verdict::pass, Verdict::inconclusive}) {
    const MutationCounts counts = score_of(verdict);

    EXPECT_EQ(counts.detected, 0);
    EXPECT_EQ(counts.equivalent, 0);
    EXPECT_GT(counts.missed, 40);
  }
}

/// A shipped plan, and how many mutants of one layer of each kind leave every bit as it is.
struct Pinned {
  const char* plan;
  int equivalent;
  friend std::ostream& operator<<(std::ostream& out, const Pinned& pinned) { return out << pinned.plan; }
};

// Where there is one, every microbatch is one sequence, which ends at no other; in the last, no rank of tp routes more
// than a row.
constexpr Pinned kPinned[] = {{"cp4_tp2_ep4", 0},
                              {"ep16_tp2_pp4", 1},
                              {"ep4_tp2_pp2_sp", 1},
                              {"ep64_tp2", 1},
                              {"tp2_ep4_pp2_dp2", 1},
                              {"tp4_ep4_pp4", 1},
                              {"tp8_ep8_all_reduce", 0},
                              {"models/deepseek-v3", 1},
                              {"models/deepseek-v3-two-batch", 1},
                              {"models/glm-4.5", 0},
                              {"models/gpt-oss-120b", 0},
                              {"models/granite-3.0-3b-a800m", 0},
                              {"models/kimi-k2", 1},
                              {"models/llama-3.1-70b", 0},
                              {"models/mixtral-8x7b", 0},
                              {"models/olmoe-1b-7b", 0},
                              {"models/phi-3.5-moe", 0},
                              {"models/qwen3-235b-a22b", 0},
                              {"serving/deepseek-v3-decode-ep144", 0},
                              {"serving/deepseek-v3-prefill-ep32", 0},
                              {"serving/ep4_tp2_pp2_sp", 0},
                              {"serving/ep4_tp2_prefix", 0},
                              {"serving/ep64_tp2_decode", 0},
                              {"serving/qwen3-235b-dcp2", 0},
                              {"serving/ep64_tp2_two_batch", 1}};

class EquivalentMutants : public ::testing::TestWithParam<Pinned> {};

TEST_P(EquivalentMutants, AreAsManyAsArePinned) {
  const Plan plan = testing::shipped_plan(GetParam().plan);

  const MutationScore score =
      run_mutations(runnable(plan).scaled({.layers = 1}), {.per_kind = 1, .wanted = [](std::string_view kind) {
                                                             const auto row = std::ranges::find(mutation_kinds(), kind,
                                                                                                &MutationKind::name);
                                                             return row->may_be_equivalent != nullptr;
                                                           }});

  MutationCounts counts = score.counts(MutationClass::sharding);
  counts.add(score.counts(MutationClass::rounding));
  EXPECT_EQ(counts.equivalent, GetParam().equivalent) << report_of(score);
  EXPECT_EQ(counts.missed, 0) << report_of(score);
  EXPECT_GE(counts.detected, 3);
}

INSTANTIATE_TEST_SUITE_P(Plans, EquivalentMutants, ::testing::ValuesIn(kPinned), [](const auto& tested) {
  std::string name = tested.param.plan;
  std::ranges::replace_if(
      name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
});

TEST(EquivalentMutants, ArePinnedForEveryShippedPlan) {
  const std::filesystem::path folder = std::string(SHARDPROOF_SOURCE_DIR) + "/plans";
  std::set<std::string> shipped, pinned;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::filesystem::path path = entry.path().lexically_relative(folder);
    if (path.extension() != ".json" || path.parent_path().filename() == "configs") continue;
    shipped.insert(path.parent_path() / path.stem());
  }
  for (const Pinned& plan : kPinned) pinned.insert(plan.plan);

  EXPECT_EQ(pinned, shipped);
}

TEST(MutationKinds, ThatMayBeEquivalentAreTheseOnly) {
  std::vector<std::string_view> names;
  for (const MutationKind& kind : mutation_kinds()) {
    if (kind.may_be_equivalent != nullptr) names.push_back(kind.name);
  }

  EXPECT_EQ(names, (std::vector<std::string_view>{
                       "sp_gather_order", "positions_offset", "positions_restarted", "sequence_boundaries_ignored",
                       "sp_scatter_order", "head_gather_order", "cp_ring_mask_off", "absorbed_keys_of_another_head",
                       "absorbed_scale_of_latents", "attention_norm_stale", "moe_norm_stale", "router_weights_twice",
                       "output_gather_order", "masked_groups_zero", "expert_accumulated_in_bf16"}));
}

TEST(MutationScores, AreWrittenAsJson) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
  const MutationScore score = run_mutations(
      runnable(plan), {.per_kind = 1, .wanted = [](std::string_view kind) { return kind == "attention_averaged"; }});

  const std::string text = to_json(std::span(&score, 1));

  EXPECT_NE(text.find("\"schema\": \"shardproof.mutate/1\""), std::string::npos);
  EXPECT_NE(text.find("\"averaged\""), std::string::npos);
}

}  // namespace
}  // namespace shardproof
