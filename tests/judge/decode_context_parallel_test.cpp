// Decode context parallelism: caches shared out inside tp groups, right and wrong, in both verdicts.
#include <gtest/gtest.h>

#include "emu/judge/verify.h"
#include "emu/plan/cache_share.h"
#include "emu/plan/validate.h"
#include "emu/run/dry_run.h"
#include "emu/run/fault.h"
#include "emu/run/kv_cache.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

/// Four ranks of tp, two on each key-value head.
Plan dcp_plan(std::int64_t interleave, bool sp = false) {
  Plan plan = testing::small_plan({.tp = 4, .dp = 2, .pp = 2, .ep = 8, .sp = sp, .dcp = 2});
  plan.parallel.dcp_interleave = interleave;
  plan.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.num_experts = 8; });
  plan.workload.serving =
      Serving{.requests = {{.prompt = 9, .output = 4}, {.prompt = 1, .output = 6}, {.prompt = 5}, {.prompt = 3}},
              .max_tokens_per_step = 6,
              .kv_block_size = 2,
              .steps = {}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  return plan;
}

TEST(DecodeContextParallel, PassesInEveryFormatAtEveryInterleave) {
  for (const std::int64_t interleave : {1, 2}) {
    for (const ops::Format format :
         {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16, ops::Format::fp16}) {
      const Plan plan = dcp_plan(interleave, interleave == 2);
      ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

      const VerifyReport report = verify(plan, {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format) << " interleave " << interleave;
    }
  }
}

TEST(DecodeContextParallel, HalvesTheCacheOfARank) {
  const Plan plan = dcp_plan(1);
  const Mesh mesh(plan.parallel);
  Plan whole = plan;
  whole.parallel.dcp = 1;

  const Deployment shared = deploy(plan.model, plan.parallel, plan.workload);
  const Deployment kept = deploy(whole.model, whole.parallel, whole.workload);

  EXPECT_LT(shared.kv_blocks[0], kept.kv_blocks[0]);
  EXPECT_EQ(shared.kv_blocks[0],
            kv_blocks_of(*plan.workload.serving, make_schedule(plan.parallel, plan.workload)[0], 2));
}

/// A rank keeps the tokens of the other of its group.
class WrongOwner final : public FaultInjector {
 public:
  void edit_cache(const Rank& rank, std::int64_t /*microbatch*/, CachedPass& pass) override {
    if (to_int(rank.id()) != 1) return;
    pass.share.rank = 0;
    for (CachedSequence& sequence : pass.sequences) {
      sequence.slots = slots_of(sequence.chunk, sequence.blocks, pass.block_size, pass.share);
    }
  }
};

TEST(DecodeContextParallel, AWrongOwnerIsFoundAndNamedInEveryFormat) {
  for (const ops::Format format : {ops::Format::exact, ops::Format::fp32, ops::Format::bf16}) {
    WrongOwner fault;

    const VerifyReport report = verify(dcp_plan(1), {.format = format, .fault = &fault});

    ASSERT_EQ(report.verdict, Verdict::mismatch) << ops::to_string(format);
    if (format != ops::Format::exact) continue;
    EXPECT_EQ(report.first_divergence->tap, "layer.0.attention.context");
    ASSERT_TRUE(report.first_divergence->cause.has_value());
    EXPECT_EQ(report.first_divergence->cause->name, "dcp_owner") << report.first_divergence->cause->evidence;
  }
}

TEST(DecodeContextParallel, CountsItsCallsAndPairsInADryRun) {
  const Plan plan = dcp_plan(1);

  const DryTraces dry = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));

  int calls = 0;
  double pairs = 0;
  for (const int rank : {0, 1}) {
    for (const OpRecord& record : dry.of(rank).ops) {
      if (record.op == Op::attention_dcp_part && record.layer == 0) pairs += record.flops;
      if (!record.call || record.axis != Axis::dcp) continue;
      ++calls;
      EXPECT_EQ(record.group_size, 2);
      EXPECT_EQ(record.width, record.op == Op::attention_dcp_sums ? 4 : 2);
    }
  }
  EXPECT_EQ(calls, 2 * 3 * 2);  // of two ranks, for each of the two layers of their stage
  // Requests of 12 and 6 tokens: each query of the two ranks' one head each sees one more, wherever it is kept.
  const std::int64_t dim = plan.model.layers[0].attention.head_dim;
  EXPECT_EQ(pairs, 2.0 * (13 + 7) * 4 * static_cast<double>(dim));
}

}  // namespace
}  // namespace shardproof
