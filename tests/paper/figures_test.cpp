#include "emu/paper/figures.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

TEST(RankFigures, AddUpTheRecordsOfTheRank) {
  RankTrace trace;
  trace.ops.push_back({.op = Op::attention_q, .flops = 5});
  trace.ops.push_back({.op = Op::attention_q, .layer = 1, .flops = 7});
  trace.ops.push_back({.op = Op::attention_reduce,
                       .call = true,
                       .axis = Axis::tp,
                       .operation = Operation::all_reduce,
                       .group_size = 4,
                       .width = 2,
                       .elements = 8,
                       .received = 8});
  trace.ops.push_back({.op = Op::dispatch,
                       .call = true,
                       .axis = Axis::ep,
                       .operation = Operation::all_to_all,
                       .group_size = 4,
                       .width = 2,
                       .elements = 8,
                       .received = 6,
                       .kept = 3});
  trace.ops.push_back({.op = Op::stage_receive,
                       .call = true,
                       .axis = Axis::pp,
                       .operation = Operation::recv,
                       .group_size = 2,
                       .width = 2,
                       .elements = 9});

  const PassFigures pass = pass_figures(trace);

  ASSERT_EQ(pass.ops.size(), 1U);
  EXPECT_EQ(pass.flops(), 12);
  ASSERT_EQ(pass.traffic.size(), 2U);
  EXPECT_EQ(pass.traffic[0].sent_bytes, 8 * 2 * 3.0 / 4 * 2);
  EXPECT_EQ(pass.traffic[1].sent_bytes, (8 - 3) * 2);
}

TEST(RankFigures, CountEveryWeightOfTheModelOnceWithoutReplicas) {
  for (const char* name : testing::kShippedPlans) {
    Plan plan = testing::shipped_plan(name);
    plan.parallel.experts = {};
    const ParameterCount whole = model_parameters(plan.model);
    std::int64_t attention = 0;
    std::int64_t experts = 0;
    for (const RankFigures& rank : rank_figures(plan)) {
      if (rank.at.dp == 0 && rank.at.cp == 0) attention += rank.parameters.attention;
      if (rank.at.edp == 0) experts += rank.parameters.experts;
    }
    EXPECT_EQ(attention, whole.attention) << name;
    EXPECT_EQ(experts, whole.experts) << name;
  }
}

TEST(RankFigures, ShareATiedEmbeddingOnOneStage) {
  Plan plan = testing::shipped_plan("tp2_ep4_pp2_dp2");
  plan.model.tie_word_embeddings = true;
  const std::int64_t slice = 16000 * 1024;

  const std::vector<RankFigures> two_stages = rank_figures(plan);
  plan.parallel = {.tp = 2, .dp = 4, .pp = 1, .ep = 4, .etp = 1, .edp = 2};
  plan.workload.microbatches = 1;
  const std::vector<RankFigures> one_stage = rank_figures(plan);

  EXPECT_EQ(two_stages[0].parameters.embedding, slice);
  EXPECT_EQ(two_stages[7].parameters.head, slice);
  EXPECT_EQ(one_stage[0].parameters.embedding, slice);
  EXPECT_EQ(one_stage[0].parameters.head, 0);
}

TEST(RankFigures, KeepTheTokensThatContextParallelismSplits) {
  Plan plan = testing::shipped_plan("tp2_ep4_pp2_dp2");
  plan.parallel = {.tp = 2, .cp = 2, .dp = 1, .pp = 2, .ep = 4, .etp = 1, .edp = 1};
  plan.workload.microbatches = 1;

  double logits = 0;
  for (const RankFigures& rank : rank_figures(plan)) {
    for (const OpTotal& op : rank.prefill.ops) logits += op.op == Op::logits ? op.flops : 0;
  }

  EXPECT_DOUBLE_EQ(logits, 2.0 * 8 * 256 * 1024 * 32000);
}

}  // namespace
}  // namespace shardproof
