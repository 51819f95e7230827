// tools/rank_ops.h, prepared_op.h, timed_op.h: which ops a rank runs, that each is checked, and what is timed of it.
#include "tools/rank_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "emu/paper/figures.h"
#include "tests/support/shipped_plans.h"
#include "tools/prepared_op.h"
#include "tools/timed_op.h"

namespace shardproof::tools {
namespace {

using ops::Format;
using ::testing::IsEmpty;
using ::testing::Not;

const Format kFormats[] = {Format::fp32, Format::bf16, Format::fp16, Format::fp64, Format::exact};

/// One of each kernel, none of whose sizes a vector divides.
std::vector<OpShape> every_kernel() {
  return {{.kernel = Kernel::embed, .rows = 5, .cols = 19, .inner = 11},
          {.kernel = Kernel::rms_norm, .rows = 5, .cols = 67},
          {.kernel = Kernel::linear, .rows = 7, .cols = 13, .inner = 71},
          {.kernel = Kernel::rope, .rows = 9, .cols = 36, .head_dim = 12},
          {.kernel = Kernel::attention, .rows = 40, .cols = 48, .head_dim = 12, .kv_heads = 2, .sequences = {3, 37}},
          {.kernel = Kernel::add, .rows = 5, .cols = 19},
          {.kernel = Kernel::route, .rows = 9, .cols = 2, .inner = 5, .normalise = true},
          {.kernel = Kernel::route, .rows = 9, .cols = 2, .inner = 5, .normalise = false},
          {.kernel = Kernel::gather_rows, .rows = 9, .cols = 19},
          {.kernel = Kernel::expert, .rows = 5, .cols = 19, .inner = 23},
          {.kernel = Kernel::combine, .rows = 5, .cols = 19, .inner = 2}};
}

TEST(RankOps, AddUpToTheFlopsOfTheRank) {
  for (const char* name : testing::kShippedPlans) {
    const Plan plan = testing::shipped_plan(name);
    // No kernel of context parallelism is timed, nor one that combines what a rank's own experts make.
    if (plan.parallel.cp > 1 || plan.parallel.sums_over_ep()) continue;
    const std::vector<RankFigures> figures = rank_figures(plan);
    for (const int rank : {0, plan.world() - 1}) {
      const RankOps of_rank = rank_ops(plan, rank, Format::bf16, DryPass::prefill);

      double flops = 0;
      for (const CountedOp& op : of_rank.ops) flops += cost_of(op.shape, 2).flops * static_cast<double>(op.count);

      EXPECT_NEAR(flops / figures[static_cast<std::size_t>(rank)].prefill.flops(), 1, 1e-12) << name << " " << rank;
      EXPECT_GT(of_rank.calls, 0);
      EXPECT_THAT(of_rank.left_out, IsEmpty());
    }
  }
}

TEST(RankOps, AreDistinctShapes) {
  const RankOps of_rank = rank_ops(testing::shipped_plan("ep64_tp2"), 5, Format::bf16, DryPass::prefill);

  for (const CountedOp& op : of_rank.ops) {
    EXPECT_EQ(std::ranges::count(of_rank.ops, op.shape, &CountedOp::shape), 1) << describe(op.shape);
    EXPECT_GT(op.count, 0);
    EXPECT_THAT(op.names, Not(IsEmpty()));
  }
}

TEST(RankOps, LeaveOutInDecodeOnlyWhatNoKernelComputes) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const RankOps of_rank = rank_ops(plan, 0, Format::bf16, DryPass::decode);

  ASSERT_EQ(of_rank.left_out.size(), 1U);
  EXPECT_EQ(of_rank.left_out[0].op, Op::attention_context);
  EXPECT_GT(of_rank.left_out[0].count, 0);
  EXPECT_FALSE(of_rank.ops.empty());
}

TEST(PreparedOp, IsRightInEveryFormat) {
  for (const Format format : kFormats) {
    for (const OpShape& shape : every_kernel()) {
      const PreparedOp op = prepare(shape, format);

      op.run();

      EXPECT_THAT(op.wrong(), IsEmpty()) << to_string(shape.kernel) << " " << ops::to_string(format);
    }
  }
}

TEST(PreparedOp, IsFoundWrongWhenOneElementIsOffByMoreThanRounding) {
  for (const Format format : kFormats) {
    for (const OpShape& shape : every_kernel()) {
      const PreparedOp op = prepare(shape, format);
      op.run();

      // The last element: a kernel that forgets what a vector does not divide gets it wrong.
      if (ops::computes_in_double(format)) {
        reinterpret_cast<double*>(op.result.data() + op.result.size())[-1] += 0.25;
      } else {
        reinterpret_cast<float*>(op.result.data() + op.result.size())[-1] += 0.25F;
      }

      EXPECT_THAT(op.wrong(), Not(IsEmpty())) << to_string(shape.kernel) << " " << ops::to_string(format);
    }
  }
}

TEST(TimedOp, IsRunInPartWhenItIsLong) {
  double share = 0;
  const OpShape linear{.kernel = Kernel::linear, .rows = 1 << 20, .cols = 8192, .inner = 8192};
  const OpShape attention{
      .kernel = Kernel::attention, .rows = 65536, .cols = 8192, .head_dim = 128, .kv_heads = 8, .sequences = {65536}};

  const OpShape fewer_rows = part_within(linear, Format::fp32, 1, share);
  EXPECT_LT(fewer_rows.rows, linear.rows);
  EXPECT_DOUBLE_EQ(share, static_cast<double>(fewer_rows.rows) / static_cast<double>(linear.rows));

  const OpShape fewer_heads = part_within(attention, Format::fp32, 1, share);
  EXPECT_EQ(fewer_heads.rows, attention.rows);
  EXPECT_EQ(fewer_heads.cols / fewer_heads.kv_heads, attention.cols / attention.kv_heads);
  EXPECT_DOUBLE_EQ(share, static_cast<double>(fewer_heads.kv_heads) / 8);
  EXPECT_DOUBLE_EQ(cost_of(fewer_heads, 4).flops, share * cost_of(attention, 4).flops);
}

TEST(TimedOp, IsLeftOutWhenItsOperandsDoNotFit) {
  const CountedOp op{.shape = {.kernel = Kernel::add, .rows = 1000, .cols = 1000}, .names = {}, .count = 1};

  const TimedOp timed = time_op(op, Format::fp32, {.repetitions = 1, .memory = 1e6});

  EXPECT_FALSE(timed.timed());
  EXPECT_THAT(timed.left_out, ::testing::HasSubstr("15.0 MB"));
}

TEST(TimedOp, TakesOneTimeARepetitionBesideItsLimit) {
  const CountedOp op{.shape = {.kernel = Kernel::add, .rows = 10, .cols = 1000}, .names = {}, .count = 1};

  const TimedOp timed = time_op(op, Format::fp32, {.repetitions = 3, .memory = 1e9});

  EXPECT_EQ(timed.seconds.size(), 3U);
  EXPECT_EQ(timed.limit_seconds.size(), 3U);
  EXPECT_GT(timed.median_seconds(), 0);
  EXPECT_GT(timed.of_limit(), 0);
}

}  // namespace
}  // namespace shardproof::tools
