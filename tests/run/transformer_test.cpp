// What the program communicates and records; that its numbers are right is tests/judge's business.
#include "emu/run/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "collectives/errors.h"
#include "collectives/seeded_executor.h"
#include "emu/run/fault.h"
#include "tests/support/random_plan.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

struct Counted {
  std::map<std::pair<std::string, std::string>, int> calls;            // (axis, operation) -> calls of rank 0
  std::map<std::pair<std::string, std::string>, std::uint64_t> bytes;  // the same, bytes sent
  std::vector<RankTrace> traces;
};

Plan plan_of(const Parallel& parallel) {
  Plan plan = testing::small_plan(parallel);
  plan.workload = {.lengths = {4, 4}, .microbatches = 1, .seed = 5};
  return plan;
}

/// The program of the plan; what it is given outlives it.
template <class T>
TransformerProgram<T> program_of(const Plan& plan, const Batch& batch, WeightStore<T>& store, ops::Format format) {
  return {.model = plan.model,
          .batch = batch,
          .weights = store,
          .format = format,
          .deployment = deploy(plan.model, plan.parallel, plan.workload)};
}

Counted run(const Plan& plan, FaultInjector* fault = nullptr, TapSink* sink = nullptr) {
  const GeneratedWeights source(plan.workload.seed);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  TransformerProgram<float> program = program_of(plan, batch, store, ops::Format::fp32);
  program.fault = fault;
  if (fault != nullptr) edit_deployment(*fault, program.deployment);
  SeededExecutor executor(1);
  Counted counted;
  cluster.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program); },
              {.taps = sink, .fault = fault, .traces = &counted.traces, .keep_calls = true});

  for (const CollectiveRecord& record : cluster.world().records(GlobalRank{0})) {
    const std::pair<std::string, std::string> key{record.axis, to_string(record.operation)};
    ++counted.calls[key];
    counted.bytes[key] += record.bytes;
  }
  return counted;
}

/// Counts the elements that are asked of it, by name. A store that keeps nothing asks at every use.
class CountingWeights final : public WeightSource {
 public:
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override {
    elements[spec.name] += out.size();
    weights_.read(spec, rows, cols, out);
  }

  mutable std::map<std::string, std::int64_t> elements;

 private:
  GeneratedWeights weights_{5};
};

class CountingSink final : public TapSink {
 public:
  void tap(GlobalRank /*rank*/, const TapKey& key, const Placement& /*placement*/, const TapValues& /*part*/) override {
    ++taps[to_string(key.id)];
  }

  std::map<std::string, int> taps;
};

/// A program that forgets an entry of a table, or takes one twice, is wrong however its numbers come out.
TEST(Transformer, UsesEveryWeightAndMakesEveryTapOfTheTablesOnce) {
  Plan plan = plan_of({});
  plan.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.top_k = layer.feed_forward.num_experts; });
  const CountingWeights source;
  WeightStore<double> store(source, ops::Format::fp64, 0);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  const TransformerProgram<double> program = program_of(plan, batch, store, ops::Format::fp64);
  SeededExecutor executor(1);
  CountingSink sink;

  cluster.run(executor, [&](Rank& rank) { return run_transformer<double>(rank, program); }, {.taps = &sink});

  std::map<std::string, std::int64_t> weights;
  std::map<std::string, int> taps;
  for_each_weight(plan.model, [&](const WeightSpec& spec) { weights[spec.name] = spec.rows * spec.cols; });
  // Of the table of embeddings, a row for each token.
  weights.at("model.embed_tokens.weight") = plan.workload.tokens() * plan.model.hidden_size;
  for (const TapId& id : all_taps(plan.model)) taps[to_string(id)] = 1;
  EXPECT_EQ(source.elements, weights);
  EXPECT_EQ(sink.taps, taps);
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
  EXPECT_EQ(counted.bytes.at({"pp", "send"}), 8U * 16 * sizeof(float));  // all tokens, hidden wide
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
        if (op.op == Op::attention_q || op.op == Op::attention_output || op.op == Op::moe_expert ||
            op.op == Op::logits || op.op == Op::router_logits) {
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
    std::vector<WeightRecord> named;
    for_each_slice(make_layout(plan.model, mesh, rank), plan.model,
                   [&](const WeightSpec& spec, Range rows, Range cols) {
                     named.push_back({spec.weight, spec.layer, spec.expert, rows.count, cols.count});
                   });

    EXPECT_EQ(counted.traces[static_cast<std::size_t>(rank)].weights, named);
  }
}

/// Every rank has these items.
class OtherTimetable final : public FaultInjector {
 public:
  explicit OtherTimetable(std::vector<WorkItem> items) : items_(std::move(items)) {}
  void edit_timetable(Timetable& timetable) override { std::ranges::fill(timetable, items_); }

 private:
  std::vector<WorkItem> items_;
};

TEST(Transformer, WalksTheItemsOfItsTimetable) {
  Plan plan = plan_of({});
  plan.workload.microbatches = 2;
  OtherTimetable fault({{.microbatch = 1, .layers = {2, 2}}, {.microbatch = 0, .layers = {0, 1}}});

  const Counted counted = run(plan, &fault);

  std::vector<std::pair<int, int>> order;  // microbatch, layer
  for (const OpRecord& op : counted.traces[0].ops) {
    if (op.op == Op::attention_q) order.emplace_back(op.microbatch, op.layer);
  }
  EXPECT_EQ(order, (std::vector<std::pair<int, int>>{{1, 2}, {1, 3}, {0, 0}}));
}

TEST(Transformer, RefusesLayersThatTheRankDoesNotHold) {
  OtherTimetable fault({{.layers = {3, 2}}});

  EXPECT_THROW(run(plan_of({}), &fault), RankError);
}

/// Keeps the rows of every tap of a rank, in the order in which they came.
class RowKeeper final : public TapSink {
 public:
  explicit RowKeeper(GlobalRank rank) : rank_(rank) {}
  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override {
    if (rank != rank_) return;
    const std::string name = to_string(key.id);
    runs[name].push_back(placement.row_part);
    std::visit(
        [&](const auto& values) {
          for (ops::Index i = 0; i < values.rows; ++i) {
            for (const auto value : values.row(i)) elements[name].push_back(static_cast<double>(value));
          }
        },
        part);
  }

  std::map<std::string, std::vector<Range>> runs;
  std::map<std::string, std::vector<double>> elements;

 private:
  GlobalRank rank_;
};

/// The rows of every microbatch lie in two runs that touch.
class RowsInTwoRuns final : public FaultInjector {
 public:
  void edit_microbatch(const Rank&, std::int64_t, RankTokens& tokens) override {
    const Range all = tokens.rows.runs.front();
    tokens.rows = {{{all.begin, 3}, {all.begin + 3, all.count - 3}}};
  }
};

TEST(Transformer, TapsSeveralRunsOfRowsOneAtATime) {
  const Plan plan = plan_of({.tp = 2, .edp = 2, .sp = true});
  RowKeeper whole(GlobalRank{0});
  RowKeeper split(GlobalRank{0});
  RowsInTwoRuns fault;

  run(plan, nullptr, &whole);
  run(plan, &fault, &split);

  EXPECT_EQ(whole.runs.at("embedding"), (std::vector<Range>{{0, 4}}));
  EXPECT_EQ(split.runs.at("embedding"), (std::vector<Range>{{0, 3}, {3, 1}}));
  EXPECT_EQ(split.runs.at("layer.0.attention.q"), (std::vector<Range>{{0, 3}, {3, 5}}));
  EXPECT_EQ(split.elements, whole.elements);
}

TEST(Transformer, LabelsEveryCallWithItsOp) {
  const Plan plan = plan_of({.tp = 2, .dp = 2, .ep = 2, .etp = 2});
  const GeneratedWeights source(plan.workload.seed);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  const TransformerProgram<float> program = program_of(plan, batch, store, ops::Format::fp32);
  SeededExecutor executor(1);
  std::vector<RankTrace> traces;

  cluster.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program); },
              {.traces = &traces, .keep_calls = true});

  // What the program recorded and what took place are the same calls.
  for (int rank = 0; rank < cluster.size(); ++rank) {
    std::vector<OpRecord> calls;
    std::ranges::copy_if(traces[static_cast<std::size_t>(rank)].ops, std::back_inserter(calls), &OpRecord::call);
    const std::vector<CollectiveRecord>& made = cluster.world().records(GlobalRank{rank});
    ASSERT_EQ(calls.size(), made.size());
    for (std::size_t i = 0; i < made.size(); ++i) {
      EXPECT_TRUE(is_call_of(made[i].tag, calls[i].op)) << to_string(calls[i].op);
      EXPECT_EQ(made[i].tag.layer, calls[i].layer);
      EXPECT_EQ(made[i].tag.microbatch, calls[i].microbatch);
      EXPECT_EQ(made[i].operation, calls[i].operation);
      EXPECT_EQ(made[i].axis, to_string(calls[i].axis));
      EXPECT_EQ(made[i].group_size, calls[i].group_size);
      EXPECT_EQ(static_cast<std::int64_t>(made[i].elements), calls[i].elements) << to_string(calls[i].op);
    }
  }
}

TEST(Transformer, KeepsNoRecordsThatNobodyAsksFor) {
  const Plan plan = plan_of({.tp = 2, .edp = 2});
  const GeneratedWeights source(plan.workload.seed);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch batch(plan.workload, plan.model.vocab_size);
  Cluster cluster(plan.parallel);
  const TransformerProgram<float> program = program_of(plan, batch, store, ops::Format::fp32);
  SeededExecutor executor(1);

  cluster.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program); });

  EXPECT_TRUE(cluster.world().records(GlobalRank{0}).empty());
  EXPECT_EQ(cluster.rank(GlobalRank{0}).trace(), nullptr);
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
                                           .deployment = deploy(plan.model, plan.parallel, plan.workload),
                                           .replay = &replay};
  SeededExecutor executor(1);

  EXPECT_THROW(cluster.run(executor, [&](Rank& rank) { return run_transformer<double>(rank, program); }), RankError);
}

}  // namespace
}  // namespace shardproof
