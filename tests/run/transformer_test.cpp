// What the program communicates and records; that its numbers are right is tests/verify's business.
#include "emu/run/transformer.h"

#include <gtest/gtest.h>

#include <map>

#include "collectives/errors.h"
#include "collectives/seeded_executor.h"
#include "tests/support/model.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

struct Counted {
  std::map<std::pair<std::string, std::string>, int> calls;            // (axis, operation) -> calls of rank 0
  std::map<std::pair<std::string, std::string>, std::uint64_t> bytes;  // the same, bytes sent
  std::vector<RankTrace> traces;
};

Plan plan_of(const Parallel& parallel) {
  Plan plan;
  plan.model = testing::uniform_model({.hidden_size = 8,
                                       .layers = 4,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 2,
                                       .intermediate_size = 4,
                                       .experts = 4,
                                       .top_k = 2,
                                       .vocab_size = 16});
  plan.parallel = parallel;
  plan.workload = {.lengths = {4, 4}, .microbatches = 1, .seed = 5};
  return plan;
}

Counted run(const Plan& plan) {
  const GeneratedWeights source(plan.workload.seed);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  const TransformerProgram<float> program{.model = plan.model,
                                          .batch = batch,
                                          .weights = store,
                                          .format = ops::Format::fp32,
                                          .layouts = make_layouts(plan.model, cluster.mesh())};
  SeededExecutor executor(1);
  cluster.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program); });

  Counted counted;
  for (const CollectiveRecord& record : cluster.world().records(GlobalRank{0})) {
    const std::pair<std::string, std::string> key{record.axis, to_string(record.operation)};
    ++counted.calls[key];
    counted.bytes[key] += record.bytes;
  }
  for (int rank = 0; rank < cluster.size(); ++rank) counted.traces.push_back(cluster.rank(GlobalRank{rank}).trace());
  return counted;
}

TEST(Transformer, AllReducesOncePerLayerAndForTheEmbeddingUnderTensorParallelism) {
  const Counted counted = run(plan_of({.tp = 2, .edp = 2}));

  EXPECT_EQ(counted.calls.at({"tp", "all_reduce"}), 1 + 4);
  EXPECT_EQ(counted.calls.at({"tp", "all_gather"}), 4);  // each rank routes its slice of the tokens
  EXPECT_EQ(counted.calls.size(), 2U);
}

TEST(Transformer, ScattersAndGathersUnderSequenceParallelism) {
  const Counted counted = run(plan_of({.tp = 2, .edp = 2, .sp = true}));

  EXPECT_FALSE(counted.calls.contains({"tp", "all_reduce"}));
  EXPECT_EQ(counted.calls.at({"tp", "reduce_scatter"}), 1 + 4);
  EXPECT_EQ(counted.calls.at({"tp", "all_gather"}), 4 + 1);  // before attention, and before the head
}

TEST(Transformer, DispatchesByAllToAllOverEpAndSplitsExpertsOverEtp) {
  const Counted counted = run(plan_of({.dp = 4, .ep = 2, .etp = 2}));

  EXPECT_EQ(counted.calls.at({"ep", "all_to_all"}), 4 * 3);  // counts, tokens out, tokens back
  EXPECT_EQ(counted.calls.at({"etp", "all_gather"}), 4 * 2);
  EXPECT_EQ(counted.calls.at({"etp", "reduce_scatter"}), 4);
}

TEST(Transformer, PassesActivationsOncePerMicrobatchBetweenStages) {
  Plan plan = plan_of({.pp = 2});
  plan.workload.microbatches = 2;

  const Counted counted = run(plan);

  EXPECT_EQ(counted.calls.at({"pp", "send"}), 2);
  EXPECT_EQ(counted.bytes.at({"pp", "send"}), 8U * 8 * sizeof(float));  // all tokens, hidden wide
}

TEST(Transformer, RunsNoCollectiveOnOneRank) {
  EXPECT_TRUE(run(plan_of({})).calls.empty());
}

TEST(Transformer, DoesTheSameArithmeticWhateverThePlan) {
  // Matrix products are split, never repeated: their flops add up to those of one rank.
  const auto product_flops = [](const Counted& counted) {
    double flops = 0;
    for (const RankTrace& trace : counted.traces) {
      for (const OpRecord& op : trace.ops) {
        if (op.op == "attention.q" || op.op == "attention.output" || op.op == "moe.expert" || op.op == "logits" ||
            op.op == "moe.router_logits") {
          flops += op.flops;
        }
      }
    }
    return flops;
  };
  const double one_rank = product_flops(run(plan_of({})));

  EXPECT_GT(one_rank, 0);
  EXPECT_EQ(product_flops(run(plan_of({.tp = 2, .edp = 2}))), one_rank);
  EXPECT_EQ(product_flops(run(plan_of({.tp = 2, .pp = 2, .ep = 2, .sp = true}))), one_rank);
  EXPECT_EQ(product_flops(run(plan_of({.dp = 4, .ep = 2, .etp = 2}))), one_rank);
}

TEST(Transformer, RecordsTheWeightsThatTheLayoutNames) {
  const Plan plan = testing::random_plan(3);
  const Counted counted = run(plan);
  const Mesh mesh(plan.parallel);

  for (int rank = 0; rank < mesh.world(); ++rank) {
    std::vector<std::string> named;
    for_each_slice(make_layout(plan.model, mesh, rank), plan.model,
                   [&](const WeightSpec& spec, Range, Range) { named.push_back(spec.name); });
    const std::vector<WeightRecord>& held = counted.traces[static_cast<std::size_t>(rank)].weights;
    ASSERT_EQ(held.size(), named.size());
    for (std::size_t i = 0; i < held.size(); ++i) EXPECT_EQ(held[i].name, named[i]);
  }
}

TEST(Transformer, RefusesToReplayChoicesInExact) {
  const Plan plan = plan_of({});
  const GeneratedWeights source(plan.workload.seed);
  WeightStore<double> store(source, ops::Format::exact);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  const RoutingReplay replay;
  const TransformerProgram<double> program{.model = plan.model,
                                           .batch = batch,
                                           .weights = store,
                                           .format = ops::Format::exact,
                                           .layouts = make_layouts(plan.model, cluster.mesh()),
                                           .replay = &replay};
  SeededExecutor executor(1);

  EXPECT_THROW(cluster.run(executor, [&](Rank& rank) { return run_transformer<double>(rank, program); }), RankError);
}

}  // namespace
}  // namespace shardproof
