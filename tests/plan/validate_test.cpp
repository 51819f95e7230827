#include "emu/plan/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "emu/model/fields.h"
#include "emu/plan/load.h"
#include "emu/plan/neighbours.h"
#include "tests/support/generate.h"
#include "tests/support/model.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

Plan small_plan() {
  Plan plan;
  plan.model = testing::uniform_model({.hidden_size = 64,
                                       .layers = 8,
                                       .heads = 8,
                                       .kv_heads = 4,
                                       .head_dim = 8,
                                       .intermediate_size = 96,
                                       .experts = 12,
                                       .top_k = 2,
                                       .vocab_size = 100});
  plan.hardware = Hardware{.gpus = 16};
  plan.parallel = {.tp = 2, .dp = 4, .pp = 2, .ep = 4, .etp = 2, .edp = 1};
  plan.workload.lengths = {4, 5, 6, 7, 8, 9, 10, 11};
  return plan;
}

std::string all_text(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) text += problem.field + ": " + problem.message + "\n";
  return text;
}

void expect_problem(const Plan& plan, const std::string& field, const std::string& words) {
  const std::vector<Problem> problems = validate(plan);
  const bool found = std::any_of(problems.begin(), problems.end(), [&](const Problem& problem) {
    return problem.field == field && problem.message.find(words) != std::string::npos;
  });
  EXPECT_TRUE(found) << "no problem at " << field << " with \"" << words << "\" among:\n" << all_text(problems);
}

/// The file is refused, with every one of the words somewhere in its problems.
void expect_refused(const std::string& file, const std::vector<std::string>& words) {
  const LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/tests/plan/refused/" + file);
  ASSERT_TRUE(loaded.plan) << all_text(loaded.problems);
  const std::vector<Problem> problems = validate(*loaded.plan);
  ASSERT_FALSE(problems.empty());
  for (const std::string& word : words) EXPECT_THAT(all_text(problems), HasSubstr(word));
}

TEST(Validate, AcceptsAPlanThatFits) {
  EXPECT_EQ(all_text(validate(small_plan())), "");
}

TEST(Validate, NeedsTheSameTokensWhereNoneAreSent) {
  Plan outside = small_plan(), sharded = small_plan(), by_asker = small_plan();
  outside.parallel.dispatch = sharded.parallel.dispatch = by_asker.parallel.dispatch = DispatchComm::all_reduce;
  outside.parallel.ep = 2 * outside.parallel.tp;
  sharded.parallel.sp = true;
  by_asker.parallel.experts.replica = ExpertPlacement::Replica::nearest;

  expect_problem(outside, "parallel.dispatch", "are not inside tp 2");
  expect_problem(sharded, "parallel.dispatch", "under sequence parallelism the ranks of tp have different tokens");
  expect_problem(by_asker, "parallel.dispatch", "\"round_robin\" is needed");
}

TEST(Validate, NeedsSomethingUnderWayAndSomethingToComputeMeanwhile) {
  Plan gathered = small_plan(), without_shared = small_plan(), odd = small_plan();
  gathered.parallel.overlap = odd.parallel.overlap = Overlap::two_batch;
  gathered.parallel.dispatch = DispatchComm::all_gather;
  without_shared.parallel.overlap = Overlap::shared_expert;
  odd.workload.microbatches = 3;

  expect_problem(gathered, "parallel.overlap", "dispatch \"all_gather\"");
  expect_problem(without_shared, "parallel.overlap", "has a shared expert");
  expect_problem(odd, "parallel.overlap", "workload.microbatches is 3");
}

TEST(Validate, AcceptsIdleGpusAndNoHardware) {
  Plan idle = small_plan();
  idle.hardware->gpus = 20;
  Plan none = small_plan();
  none.hardware.reset();

  EXPECT_EQ(all_text(validate(idle)), "");
  EXPECT_EQ(all_text(validate(none)), "");
}

TEST(Validate, MultipliesTheDegreesAgainstTheGpus) {
  Plan plan = small_plan();
  plan.parallel.dp = 8;
  plan.parallel.edp = 2;

  expect_problem(plan, "parallel", "tp 2 * cp 1 * dp 8 * pp 2 = 32 GPUs needed, but hardware.gpus is 16");
  expect_problem(plan, "parallel", "dp 4 fits");
  expect_problem(plan, "parallel", "32 GPUs");
}

TEST(Validate, NeedsExpertsToFillAStage) {
  Plan exceeding = small_plan();
  exceeding.parallel.ep = 12;
  Plan dividing = small_plan();
  dividing.parallel.ep = 3;
  Plan replicas = small_plan();
  replicas.parallel.edp = 7;

  expect_problem(exceeding, "parallel.ep", "= 8 ranks, which ep 12 * etp 2 = 24 exceeds");
  expect_problem(dividing, "parallel.ep", "= 8 ranks, which ep 3 * etp 2 = 6 does not divide");
  expect_problem(replicas, "parallel.edp", "7, but tp 2 * cp 1 * dp 4 / (ep 4 * etp 2) = 1");
}

TEST(Validate, NeedsAWayOverCpThatTheAttentionAllows) {
  Plan ring = small_plan();
  ring.parallel = {.tp = 2, .cp = 2, .dp = 2, .pp = 2, .ep = 4, .etp = 2, .edp = 1};
  Plan windows = ring, sinks = ring, dealt = ring, replicated = ring;
  windows.model.layers.edit([](LayerSpec& layer) { layer.attention.sliding_window = 5; });
  sinks.model.layers.edit([](LayerSpec& layer) { layer.attention.sinks = true; });
  dealt.parallel = {.tp = 2, .cp = 3, .dp = 4, .ep = 4, .etp = 2, .edp = 3, .cp_comm = CpComm::a2a};
  replicated.parallel = {.tp = 4, .cp = 2, .ep = 4, .etp = 2, .edp = 1, .cp_comm = CpComm::a2a};
  replicated.model.layers.edit([](LayerSpec& layer) { layer.attention.kv_heads = 2; });

  EXPECT_EQ(all_text(validate(ring)), "");
  expect_problem(windows, "parallel.cp_comm",
                 "p2p: the parts of a ring are not cut to a window, and layers have one of 5");
  expect_problem(sinks, "parallel.cp_comm", "p2p: the parts of a ring are merged without sinks");
  expect_problem(dealt, "parallel.cp_comm", "a2a: 4 query heads a rank of tp 2 / cp 3 = 1 remainder 1");
  expect_problem(replicated, "parallel.cp_comm", "a2a: 1 key-value head a rank of tp 4 / cp 2 = 0 remainder 1");
  replicated.parallel = {.tp = 4, .cp = 4, .ep = 4, .etp = 4, .edp = 1, .cp_comm = CpComm::a2a_p2p, .cp_a2a = 2};
  expect_problem(replicated, "parallel.cp_comm",
                 "a2a+p2p: 1 key-value head a rank of tp 4 / cp_sizes[0] 2 = 0 remainder 1");
  for (Plan* plan : {&windows, &sinks}) {
    EXPECT_EQ(validate(*plan).size(), 1U) << all_text(validate(*plan));
    plan->parallel.cp_comm = CpComm::all_gather;
    EXPECT_EQ(all_text(validate(*plan)), "");
  }
}

TEST(Validate, NeedsTheModelToDivide) {
  Plan heads = small_plan();
  heads.parallel = {.tp = 3, .ep = 1, .etp = 1, .edp = 3};
  Plan kv = small_plan();
  kv.model.layers.kind(0).attention.heads = 12;
  kv.model.layers.kind(0).attention.kv_heads = 3;
  Plan experts = small_plan();
  experts.model.layers.kind(0).feed_forward.num_experts = 3;
  Plan width = small_plan();
  width.model.layers.kind(0).feed_forward.intermediate_size = 97;
  Plan layers = small_plan();
  layers.model.layers.resize(1);
  Plan vocabulary = small_plan();
  vocabulary.model.vocab_size = 1;

  Plan stages = small_plan();
  stages.parallel.layers_per_stage = {1, 1};
  Plan too_few = small_plan();
  too_few.parallel.layers_per_stage = {4};

  expect_problem(stages, "parallel.layers_per_stage", "2 layers in all, the model has");
  expect_problem(too_few, "parallel.layers_per_stage", "1 stages, but pp is 2");
  expect_problem(heads, "parallel.tp", "8 query heads / tp 3 = 2 remainder 2; 2 or 4 would do");
  expect_problem(kv, "parallel.tp", "3 key-value heads and tp 2: neither divides the other");
  expect_problem(experts, "parallel.ep", "3 experts cannot be spread over ep 4; at most ep 3 is needed");
  expect_problem(width, "parallel.etp", "97 columns of an expert / etp 2 = 48 remainder 1");
  expect_problem(layers, "parallel.pp", "2 stages for 1 layers");
  expect_problem(vocabulary, "parallel.tp", "a vocabulary of 1");
}

TEST(Validate, NeedsTheModelToMakeSense) {
  Plan odd = small_plan();
  odd.model.layers.kind(0).attention.head_dim = 7;
  Plan kv = small_plan();
  kv.model.layers.kind(0).attention.kv_heads = 16;
  Plan chosen = small_plan();
  chosen.model.layers.kind(0).feed_forward.top_k = 13;
  Plan none = small_plan();
  none.model.vocab_size = 0;
  Plan eps = small_plan();
  eps.model.rms_norm_eps = std::numeric_limits<double>::quiet_NaN();

  expect_problem(odd, "model.head_dim", "6 or 8 is needed");
  expect_problem(kv, "model.num_key_value_heads", "8 query heads / 16 key-value heads");
  expect_problem(chosen, "model.num_experts_per_tok", "a layer has 12");
  expect_problem(none, "model.vocab_size", "at least 1");
  expect_problem(eps, "model.rms_norm_eps", "finite");
}

TEST(Validate, NeedsTensorParallelismForSequenceParallelism) {
  Plan plan = small_plan();
  plan.parallel = {.tp = 1, .dp = 8, .pp = 2, .ep = 4, .etp = 2, .edp = 1, .sp = true};

  expect_problem(plan, "parallel.sp", "tp is 1");
}

TEST(Validate, NeedsASequenceForEveryMicrobatch) {
  Plan plan = small_plan();
  plan.workload.microbatches = 3;

  expect_problem(plan, "workload.microbatches", "ceil(batch 8 / dp 4) = 2");
}

TEST(Validate, AsksForCountsThatARouterCouldHaveGiven) {
  const auto expect = [](std::vector<std::vector<std::int64_t>> counts, const std::string& field,
                         const std::string& words) {
    Plan plan = small_plan();
    plan.workload.routing.counts = std::move(counts);
    expect_problem(plan, field, words);
  };
  const std::vector<std::int64_t> even(12, 1);

  expect({even, even}, "workload.routing.counts", "2 rows for 8 layers");
  expect({{1, 1}}, "workload.routing.counts[0]", "2 counts for 12 experts");
  expect({{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, "workload.routing.counts[0]", "adds up to 1 slots; top_k 2 times");
  expect({std::vector<std::int64_t>(12, 0)}, "workload.routing.counts[0]", "adds up to 0 slots");
  expect({std::vector<std::int64_t>(12, kMaxRoutedTokens)}, "workload.routing.counts[0]", "adds up to");
  expect({{3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, "workload.routing.counts[0]", "an expert served 3 slots");
}

TEST(Validate, ReportsCountsThatAreEveryLayersOnce) {
  Plan plan = small_plan();
  plan.workload.routing.counts = {{1, 1}};

  EXPECT_EQ(validate(plan).size(), 1U);
}

TEST(Validate, ReportsEverythingAtOnce) {
  Plan plan = small_plan();
  plan.parallel = {.tp = 3, .dp = 8, .pp = 20, .ep = 5, .etp = 7};
  plan.model.layers.kind(0).attention.head_dim = 3;
  plan.workload.microbatches = 9;

  EXPECT_GE(validate(plan).size(), 8u);
}

TEST(Validate, IsTotalOverAbsurdValues) {
  std::mt19937_64 random(5);
  const std::int64_t values[] = {0,
                                 1,
                                 -1,
                                 2,
                                 3,
                                 7,
                                 64,
                                 65536,
                                 65537,
                                 1'000'000'000,
                                 std::numeric_limits<int>::max(),
                                 std::numeric_limits<int>::min(),
                                 std::numeric_limits<std::int64_t>::max(),
                                 std::numeric_limits<std::int64_t>::min()};
  const auto any = [&] { return values[random() % std::size(values)]; };
  for (int round = 0; round < 5000; ++round) {
    Plan plan = small_plan();
    Parallel& p = plan.parallel;
    for (int* degree : {&p.tp, &p.cp, &p.dp, &p.pp, &p.ep, &p.etp, &p.edp}) {
      if (random() % 3 == 0) *degree = static_cast<int>(any());
    }
    ModelConfig& m = plan.model;
    LayerSpec layer = m.layers[0];
    std::int64_t layers = m.layers.size();
    for (std::int64_t* size : {&m.hidden_size, &layers, &layer.attention.heads, &layer.attention.kv_heads,
                               &layer.attention.head_dim, &layer.feed_forward.intermediate_size,
                               &layer.feed_forward.num_experts, &layer.feed_forward.top_k, &m.vocab_size}) {
      if (random() % 6 == 0) *size = std::min<std::int64_t>(any(), 1 << 24);
    }
    m.layers = LayerList(std::clamp<std::int64_t>(layers, 0, kMaxLayers), layer);
    if (random() % 4 == 0) plan.hardware->gpus = any();
    if (random() % 4 == 0) plan.workload.lengths = {any(), any()};
    plan.workload.microbatches = random() % 4 == 0 ? any() : 1;

    const std::vector<Problem> problems = validate(plan);

    for (const Problem& problem : problems) ASSERT_FALSE(problem.message.empty());
  }
}

TEST(Validate, AcceptsEveryGeneratedPlan) {
  std::mt19937_64 random(6);
  for (int round = 0; round < 500; ++round) {
    EXPECT_EQ(all_text(validate(testing::random_valid_plan(random, 64))), "") << "round " << round;
  }
}

TEST(Neighbours, AreValidAndKeepWhatTheyPromise) {
  std::mt19937_64 random(7);
  int checked = 0;
  for (int round = 0; round < 300; ++round) {
    Plan plan = testing::random_valid_plan(random, 64);
    plan.hardware = Hardware{.gpus = static_cast<std::int64_t>(1 + random() % 96)};
    plan.parallel.tp = static_cast<int>(1 + random() % 9);
    plan.parallel.ep = static_cast<int>(1 + random() % 9);
    plan.workload.microbatches = 1;
    const Neighbours near = nearest_valid(plan);
    if (near.same_gpus) {
      Plan other = plan;
      other.parallel = *near.same_gpus;
      EXPECT_EQ(all_text(validate(other)), "");
      EXPECT_EQ(other.world(), plan.hardware->gpus);
      ++checked;
    }
    if (near.same_degrees) {
      Plan other = plan;
      other.parallel = *near.same_degrees;
      other.hardware.reset();
      EXPECT_EQ(all_text(validate(other)), "");
      ++checked;
    }
  }
  EXPECT_GT(checked, 300);
}

TEST(RefusedPlans, Document001AsFirstStated) {
  expect_refused("tp4_ep16_pp4_dp2_on_16.json",
                 {"tp 4 * cp 1 * dp 2 * pp 4 = 32 GPUs needed, but hardware.gpus is 16", "ep 16 * etp 1 = 16 exceeds",
                  "tp4 dp4 pp4, ep16: 64 GPUs", "16 GPUs"});
}

TEST(RefusedPlans, Document000AsFirstStated) {
  expect_refused("tp3_of_16.json", {"uses 3 of 16 GPUs", "8 layers and 4 experts do not divide by 3",
                                    "64 query heads / tp 3", "nearest on 16 GPUs: tp4"});
}

TEST(RefusedPlans, Document003sAllocationList) {
  expect_refused("tp2_ep4_pp2_sp2_dp8_on_16.json", {"tp 2 * cp 1 * dp 8 * pp 2 = 32", "dp 4 fits",
                                                    "nearest on 16 GPUs: tp2 dp4 pp2 sp, ep4 etp2: 16 GPUs"});
}

TEST(Validate, RefusesASliceThatCutsABlockOfQuantisedWeights) {
  Plan plan = small_plan();
  plan.parallel = {.tp = 8, .pp = 2, .etp = 8};
  plan.model.weight_block = 128;
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.attention.heads = layer.attention.kv_heads = 8;
    layer.feed_forward.intermediate_size = 1536;
  });

  const std::vector<Problem> problems = validate(plan);
  plan.parallel = {.tp = 2, .dp = 4, .pp = 2, .ep = 4, .etp = 2};

  ASSERT_FALSE(problems.empty());
  EXPECT_EQ(problems.front().field, "parallel.etp");
  EXPECT_NE(problems.front().message.find("1536 columns of an expert / etp 8 = 192, which cuts the blocks of 128"),
            std::string::npos)
      << problems.front().message;
  EXPECT_NE(problems.front().message.find("6 or 12 would do"), std::string::npos) << problems.front().message;
  EXPECT_TRUE(validate(plan).empty());
}

TEST(Validate, RefusesToChooseMoreGroupsThanThereAre) {
  Plan plan = small_plan();
  plan.model.layers.kind(0).feed_forward.top_groups = 2;

  EXPECT_THAT(all_text(validate(plan)), HasSubstr("model.topk_group: 2 of 1 groups; 1 to 1 is needed"));
}

TEST(Validate, HoldsTokenIdsToTheVocabularyAndTheLengths) {
  Plan plan = small_plan();
  for (const std::int64_t length : plan.workload.lengths) {
    plan.workload.token_ids.emplace_back(static_cast<std::size_t>(length), 99);
  }
  EXPECT_EQ(all_text(validate(plan)), "");
  Plan outside = plan, longer = plan, fewer = plan;
  outside.workload.token_ids[2][1] = 100;
  longer.workload.token_ids[3].push_back(0);
  fewer.workload.token_ids.pop_back();

  EXPECT_THAT(all_text(validate(outside)),
              HasSubstr("workload.tokens[2][1]: 100; a token of the model's vocabulary, 0 to 99"));
  EXPECT_THAT(all_text(validate(longer)), HasSubstr("workload.tokens[3]: 8 tokens, \"lengths\" says 7"));
  EXPECT_THAT(all_text(validate(fewer)), HasSubstr("workload.tokens: 7 sequences"));
}

}  // namespace
}  // namespace shardproof
