// A dry run's records are those of a run with numbers, field by field.
#include "emu/run/dry_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ostream>

#include "collectives/thread_executor.h"
#include "emu/plan/scale.h"
#include "emu/run/transformer.h"
#include "tests/support/random_plan.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::ostream& operator<<(std::ostream& out, const OpRecord& record) {
  return out << to_string(record.op) << " layer " << record.layer << " microbatch " << record.microbatch << " expert "
             << record.expert << " " << record.rows << " x " << record.cols << " flops " << record.flops << " elements "
             << record.elements << " received " << record.received << " kept " << record.kept;
}

namespace {

/// Keeps every layer's choice of experts.
class ChoiceKeeper final : public TapSink {
 public:
  ChoiceKeeper(const ModelConfig& model, std::int64_t tokens) {
    for (std::int64_t layer = 0; layer < model.layers.size(); ++layer) {
      choices.emplace_back(tokens, model.layers[layer].feed_forward.top_k);
    }
  }
  void tap(GlobalRank /*rank*/, const TapKey& key, const Placement& placement, const TapValues& part) override {
    if (key.id.kind != TapKind::router_choice) return;
    const auto& ids = std::get<ops::MatrixView<const std::int32_t>>(part);
    for (std::int64_t i = 0; i < ids.rows; ++i) {
      std::ranges::copy(ids.row(i), choices[static_cast<std::size_t>(key.id.layer)].row(placement.row(i)).begin());
    }
  }

  RoutingReplay choices;
};

struct Recorded {
  std::vector<RankTrace> traces;
  RoutingReplay choices;
};

Recorded record(const Plan& plan) {
  const Batch batch(plan.workload, plan.model.vocab_size);
  const GeneratedWeights weights(plan.workload.seed);
  WeightStore<float> store(weights, ops::Format::bf16);
  Cluster cluster(plan.parallel);
  const TransformerProgram<float> program{.model = plan.model,
                                          .batch = batch,
                                          .weights = store,
                                          .format = ops::Format::bf16,
                                          .deployment = deploy(plan.model, plan.parallel, plan.workload)};
  ThreadExecutor executor(1);
  ChoiceKeeper keeper(plan.model, plan.workload.tokens());
  std::vector<RankTrace> traces;
  cluster.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program); },
              {.taps = &keeper, .traces = &traces});
  return {std::move(traces), std::move(keeper.choices)};
}

void expect_equal_records(const Plan& plan) {
  const Recorded run = record(plan);

  const DryTraces dry = dry_run(plan, ops::Format::bf16, DryPass::prefill, StatedRouting::of(run.choices));

  for (int rank = 0; rank < plan.world(); ++rank) {
    const std::vector<OpRecord>& wanted = run.traces[static_cast<std::size_t>(rank)].ops;
    const std::vector<OpRecord>& got = dry.of(rank).ops;
    ASSERT_EQ(got.size(), wanted.size()) << "rank " << rank;
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], wanted[i]) << "rank " << rank;
  }
}

TEST(DryRun, RecordsWhatARunOfTheSameRoutingRecords) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const Plan plan = testing::random_plan(testing::property_seed() + seed, 32);
    SCOPED_TRACE(testing::describe(plan));

    expect_equal_records(plan);

    if (HasFailure()) return;
  }
}

TEST(DryRun, RecordsWhatARunOfAShippedPlanRecords) {
  for (const char* name : testing::kShippedPlans) {
    SCOPED_TRACE(name);

    expect_equal_records(scaled(testing::shipped_plan(name), {}));
  }
}

/// What a folded list stands for.
std::vector<OpRecord> unfolded(const RankTrace& list) {
  std::vector<OpRecord> all;
  for (const RecordRun& run : list.runs) {
    for (std::int32_t layer = 0; layer < run.layers; ++layer) {
      for (std::size_t i = run.begin; i < run.end; ++i) {
        OpRecord& record = all.emplace_back(list.ops[i]);
        if (record.layer >= 0) record.layer += run.layer_shift + layer;
        record.microbatch += run.microbatch_shift;
      }
    }
  }
  return all;
}

/// Returns how many records the lists hold of those that they stand for.
double expect_foldable(const Plan& plan, DryPass pass) {
  const StatedRouting routing = StatedRouting::of(plan);
  const DryTraces whole = dry_run(plan, ops::Format::bf16, pass, routing);

  const DryTraces folded = dry_run(plan, ops::Format::bf16, pass, routing, DryLists::folded);

  std::size_t kept = 0, wanted = 0;
  EXPECT_EQ(folded.distinct, whole.distinct);
  for (int rank = 0; rank < plan.world(); ++rank) {
    EXPECT_EQ(unfolded(folded.of(rank)), whole.of(rank).ops) << "rank " << rank;
    kept += folded.of(rank).ops.size();
    wanted += whole.of(rank).ops.size();
  }
  return static_cast<double>(kept) / static_cast<double>(wanted);
}

TEST(DryRun, FoldsListsThatStandForTheWholeOnes) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Plan plan = testing::random_plan(testing::property_seed() + seed, 32);
    if (seed % 3 == 1) plan.workload.routing.zipf = 1.1;
    SCOPED_TRACE(testing::describe(plan));
    for (const DryPass pass : {DryPass::prefill, DryPass::decode}) expect_foldable(plan, pass);
    if (HasFailure()) return;
  }
}

TEST(DryRun, KeepsOfLikeLayersAndMicrobatchesTheRecordsOfOne) {
  for (const char* name : testing::kShippedPlans) {
    SCOPED_TRACE(name);
    Plan plan = testing::shipped_plan(name);
    if (plan.parallel.pp > 1) plan.workload.microbatches = 4;
    for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
      EXPECT_LT(expect_foldable(plan, pass), plan.model.layers.size() > 4 ? 0.5 : 1.01);
    }
  }
}

TEST(DryRun, SharesTheRecordsOfRanksThatAreAlike) {
  const Plan plan = testing::shipped_plan("ep64_tp2");
  const StatedRouting even = StatedRouting::of(plan);

  const DryTraces dry = dry_run(plan, ops::Format::bf16, DryPass::prefill, even);

  EXPECT_EQ(dry.ranks.size(), 128U);
  EXPECT_LE(dry.distinct, 4U);
  EXPECT_EQ(dry.ranks[0], dry.ranks[2]);
}

TEST(DryRun, GivesEveryExpertTheSameNumberOfSlotsUnderEvenRouting) {
  const Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  const StatedRouting even = StatedRouting::of(plan);
  const DryTraces dry = dry_run(scaled(plan, {}), ops::Format::bf16, DryPass::prefill, even);

  double most = 0, least = 1e9, total = 0;
  std::map<std::pair<int, int>, double> rows;  // of an ep rank's expert in layer 0, over its edp replicas
  const Mesh mesh(plan.parallel);
  for (int rank = 0; rank < plan.world(); ++rank) {
    const Coordinates at = mesh.coordinates(rank);
    if (at.etp != 0) continue;
    for (const OpRecord& record : dry.of(rank).ops) {
      if (record.op != Op::moe_expert || record.layer != 0) continue;
      rows[{at.ep, record.expert}] += static_cast<double>(record.rows);
      total += static_cast<double>(record.rows);
    }
  }
  for (const auto& [expert, count] : rows) {
    most = std::max(most, count);
    least = std::min(least, count);
  }

  EXPECT_EQ(rows.size(), 16U);
  EXPECT_EQ(total, static_cast<double>(2 * scaled(plan, {}).workload.tokens()));
  EXPECT_LE(most - least, 1);
}

TEST(DryRun, CountsThePastThatADecodeStepAttendsTo) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const StatedRouting even = StatedRouting::of(plan);

  const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, even);

  double flops = 0, rows = 0;
  for (const OpRecord& record : decode.of(0).ops) {
    if (record.op != Op::attention_context || record.layer != 0) continue;
    flops += record.flops;
    rows += static_cast<double>(record.rows);
  }
  // 8 sequences, one token each on 257 keys, 16 heads of 128 on this rank: q k and p v, two flops a pair and element.
  EXPECT_EQ(rows, 8);
  EXPECT_EQ(flops, 8.0 * 257 * 4 * 16 * 128);
}

/// Of layer 0 of a rank, the flops and the rows of each op.
struct OpWork {
  double flops = 0, rows = 0, past = 0;
};
std::map<Op, OpWork> work_of_first_layer(const RankTrace& trace) {
  std::map<Op, OpWork> work;
  for (const OpRecord& record : trace.ops) {
    if (record.call || record.layer != 0) continue;
    OpWork& of = work[record.op];
    of.flops += record.flops;
    of.rows += static_cast<double>(record.rows);
    of.past += record.past;
  }
  return work;
}

/// DeepSeek-V3 on one rank: 128 heads of 128 + 64 and values of 128, latents of 512.
Plan on_one_rank_of_deepseek() {
  Plan plan = testing::shipped_plan("models/deepseek-v3");
  plan.parallel = {};
  plan.workload = {.lengths = {1000, 2000}, .microbatches = 1};
  return plan;
}

TEST(DryRun, DecodesLatentAttentionAbsorbed) {
  Plan plan = on_one_rank_of_deepseek();
  const auto decode = [&] {
    return work_of_first_layer(dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan)).of(0));
  };

  const std::map<Op, OpWork> absorbed = decode();
  plan.workload.latent_decode = LatentForm::plain;
  const std::map<Op, OpWork> plain = decode();

  EXPECT_EQ(absorbed.at(Op::attention_absorb).flops, 2.0 * 2 * 128 * 128 * 512);
  EXPECT_EQ(absorbed.at(Op::attention_latent_context).flops, 2.0 * (1001 + 2001) * 128 * (512 + 64 + 512));
  EXPECT_EQ(absorbed.at(Op::attention_latent_context).past, 3000);
  EXPECT_EQ(absorbed.at(Op::attention_expand).flops, 2.0 * 2 * 128 * 128 * 512);
  for (const Op op : {Op::attention_kv, Op::attention_heads, Op::attention_context}) {
    EXPECT_FALSE(absorbed.contains(op)) << to_string(op);
    EXPECT_TRUE(plain.contains(op)) << to_string(op);
  }
  // The products of both forms are those with the same weight.
  EXPECT_EQ(absorbed.at(Op::attention_absorb).flops + absorbed.at(Op::attention_expand).flops,
            plain.at(Op::attention_kv).flops);
  EXPECT_EQ(plain.at(Op::attention_context).flops, 2.0 * (1001 + 2001) * 128 * (192 + 128));
}

TEST(DryRun, AttendsToLatentsWhereRanksOfDcpKeepThem) {
  Plan plan = on_one_rank_of_deepseek();
  plan.parallel = {.tp = 8, .ep = 8, .dcp = 4};

  const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));

  double pairs = 0;
  for (int rank = 0; rank < 4; ++rank) {
    std::map<Op, OpWork> work = work_of_first_layer(decode.of(rank));
    EXPECT_FALSE(work.contains(Op::attention_cache_read)) << "no latents are gathered";
    EXPECT_EQ(work[Op::attention_dcp_part].rows, 2 * 4);
    EXPECT_EQ(work[Op::attention_dcp_merge].rows, 2);
    // 16 heads a rank: 512 + 64 of a query and a key, 512 of a value.
    pairs += work[Op::attention_dcp_part].flops / (2.0 * 16 * (512 + 64 + 512));
    std::map<Op, std::int64_t> columns;
    for (const OpRecord& record : decode.of(rank).ops) {
      if (record.call && record.layer == 0 && record.axis == Axis::dcp) columns[record.op] = record.cols;
    }
    EXPECT_EQ(columns, (std::map<Op, std::int64_t>{{Op::attention_dcp_gather_q, 16 * 576},
                                                   {Op::attention_dcp_context, 16 * 512},
                                                   {Op::attention_dcp_sums, 16}}));
  }
  EXPECT_EQ(pairs, 4 * (1001 + 2001)) << "each rank's tokens have every query of the four";
  expect_foldable(plan, DryPass::decode);
}

TEST(DryRun, TakesTheFormOfAStepsTokensFromTheirPrompts) {
  const Plan plan = on_one_rank_of_deepseek();

  // A prompt, a token after one, and a chunk that ends two tokens after its prompt.
  const DryTraces step = dry_run_step(
      plan, ops::Format::bf16,
      {{{.begin = 0, .count = 4, .of_prompt = 4}, {.begin = 9, .count = 1}, {.begin = 2, .count = 5, .of_prompt = 3}}},
      StatedRouting::of(plan));

  std::map<Op, OpWork> work = work_of_first_layer(step.of(0));
  EXPECT_EQ(work[Op::attention_q].rows, 10);
  EXPECT_EQ(work[Op::attention_kv].rows, 7);
  EXPECT_EQ(work[Op::attention_context].rows, 7);
  EXPECT_EQ(work[Op::attention_context].past, 2);
  EXPECT_EQ(work[Op::attention_context].flops, 2.0 * (1 + 2 + 3 + 4 + 3 + 4 + 5) * 128 * (192 + 128));
  EXPECT_EQ(work[Op::attention_absorb].rows, 3);
  EXPECT_EQ(work[Op::attention_latent_context].past, 9 + 5);
  EXPECT_EQ(work[Op::attention_latent_context].flops, 2.0 * (10 + 6 + 7) * 128 * (512 + 64 + 512));
}

TEST(DryRun, TellsReplicasOfDifferentPastsApart) {
  Plan plan = testing::shipped_plan("tp2_ep4_pp2_dp2");
  plan.workload = {.lengths = {1, 1, 1000, 1000}, .microbatches = 1};
  const auto flops_at = [&](int dp) {
    const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));
    double flops = 0;
    for (const OpRecord& record : decode.of(Mesh(plan.parallel).rank_at({.dp = dp})).ops) {
      if (record.op == Op::attention_context) flops += record.flops;
    }
    return flops;
  };

  EXPECT_EQ(flops_at(1) / flops_at(0), 1001.0 / 2);
}

TEST(DryRun, GathersTheRowsOfEveryContextParallelShare) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.parallel = {.cp = 4, .edp = 4, .cp_comm = CpComm::all_gather};
  plan.workload = {.lengths = {9}, .microbatches = 1};

  const DryTraces dry = dry_run(plan, ops::Format::bf16, DryPass::prefill, StatedRouting::of(plan));

  for (int rank = 0; rank < 4; ++rank) {
    const auto gathered = std::ranges::find(dry.of(rank).ops, Op::attention_gather_k, &OpRecord::op);
    ASSERT_NE(gathered, dry.of(rank).ops.end());
    EXPECT_EQ(gathered->rows, 9);
  }
}

TEST(DryRun, CountsThePastOfADecodeStepOnceOverARing) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.parallel = {.cp = 3, .edp = 3};
  plan.workload = {.lengths = {9, 24, 5, 100}, .microbatches = 1};

  const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));

  double pairs = 0;
  for (int rank = 0; rank < 3; ++rank) {
    for (const OpRecord& record : decode.of(rank).ops) {
      if (record.op == Op::attention_ring_part && record.layer == 0) pairs += record.flops / (4 * 64 * 128);
    }
  }
  EXPECT_EQ(pairs, 10 + 25 + 6 + 101);
}

TEST(DryRun, SendsKeysAndValuesRoundTheRing) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.parallel = {.tp = 2, .cp = 4, .edp = 8};
  plan.workload = {.lengths = {9, 24}, .microbatches = 1};

  const DryTraces dry = dry_run(plan, ops::Format::bf16, DryPass::prefill, StatedRouting::of(plan));

  const Mesh mesh(plan.parallel);
  const TokenMap map(plan.parallel, plan.workload);
  for (int rank = 0; rank < 8; ++rank) {
    const Coordinates at = mesh.coordinates(rank);
    std::vector<std::int64_t> sent, received;
    double pairs = 0;
    for (const OpRecord& record : dry.of(rank).ops) {
      if (record.layer != 0) continue;
      if (record.op == Op::attention_ring_send) sent.push_back(record.rows);
      if (record.op == Op::attention_ring_receive) received.push_back(record.rows);
      // 32 heads of 128 a rank of tp; q k and p v, two flops each.
      if (record.op == Op::attention_ring_part) pairs += record.flops / (4 * 32 * 128);
    }
    const auto rows_of = [&](int behind) { return map.rows({.cp = (at.cp + 4 - behind) % 4}, 0).count(); };

    EXPECT_EQ(sent, (std::vector<std::int64_t>{rows_of(0), rows_of(1), rows_of(2)}));
    EXPECT_EQ(received, (std::vector<std::int64_t>{rows_of(1), rows_of(2), rows_of(3)}));
    EXPECT_EQ(pairs, map.pairs(at, 0));
  }
}

TEST(DryRun, RefusesMoreThanItCanKeep) {
  const auto dry = [](const Plan& plan) {
    dry_run(plan, ops::Format::bf16, DryPass::prefill, StatedRouting::of(plan));
  };
  Plan passes = testing::shipped_plan("tp4_ep4_pp4");
  passes.workload.microbatches = kMostPasses;
  Plan counts = testing::shipped_plan("ep64_tp2");
  const std::vector<std::int64_t> of_layer(64, 1);
  counts.workload.routing.counts.assign(static_cast<std::size_t>(counts.model.layers.size()), of_layer);
  counts.workload.lengths.assign(64 * 2048, 1);
  counts.workload.microbatches = 2048;

  EXPECT_THAT([&] { dry(passes); }, ThrowsMessage<TooManyRecords>(HasSubstr("passes through a stage")));
  EXPECT_THAT([&] { dry(counts); },
              ThrowsMessage<TooManyRecords>(HasSubstr("or with one row of workload.routing.counts")));
}

}  // namespace
}  // namespace shardproof
