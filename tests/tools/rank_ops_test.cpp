// tools/rank_ops.h, prepared_op.h, timed_op.h: which ops a rank runs, that each is checked, and what is timed of it.
#include "tools/rank_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

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

OpShape attention_shape(Kernel kernel, std::vector<KeySpan> spans, std::int64_t keys) {
  OpShape shape{.kernel = kernel, .cols = 36, .head_dim = 12, .value_dim = 9, .kv_heads = 2, .keys = keys};
  for (const KeySpan& span : spans) shape.rows += span.queries;
  shape.spans = std::move(spans);
  return shape;
}

/// Each kernel in each of its ways, with sizes that no vector divides.
std::vector<OpShape> every_kernel() {
  std::vector<OpShape> shapes{
      {.kernel = Kernel::embed, .rows = 5, .cols = 19, .inner = 11},
      {.kernel = Kernel::rms_norm, .rows = 5, .cols = 67},
      {.kernel = Kernel::rms_norm_part, .rows = 5, .cols = 17, .inner = 34},
      {.kernel = Kernel::sum_squares, .rows = 5, .cols = 17},
      {.kernel = Kernel::layer_norm, .rows = 5, .cols = 67},
      {.kernel = Kernel::linear, .rows = 7, .cols = 13, .inner = 71},
      {.kernel = Kernel::linear, .rows = 7, .cols = 13, .inner = 71, .bias = true},
      {.kernel = Kernel::rope, .rows = 9, .cols = 36, .head_dim = 12, .rope_dim = 12},
      {.kernel = Kernel::rope, .rows = 9, .cols = 36, .head_dim = 12, .rope_dim = 8, .interleaved = true},
      {.kernel = Kernel::split_heads, .rows = 5, .cols = 57, .inner = 4, .head_dim = 10, .value_dim = 9, .kv_heads = 3},
      {.kernel = Kernel::absorb_queries,
       .rows = 5,
       .cols = 69,
       .inner = 19,
       .head_dim = 10,
       .value_dim = 9,
       .kv_heads = 3,
       .rope_dim = 4},
      {.kernel = Kernel::expand_context,
       .rows = 5,
       .cols = 27,
       .inner = 19,
       .head_dim = 10,
       .value_dim = 9,
       .kv_heads = 3,
       .rope_dim = 4},
      {.kernel = Kernel::merge_parts, .rows = 5, .cols = 36, .inner = 3, .value_dim = 12},
      {.kernel = Kernel::add, .rows = 5, .cols = 19},
      {.kernel = Kernel::add_scaled, .rows = 5, .cols = 19, .factor = 0.22},
      {.kernel = Kernel::scale, .rows = 5, .cols = 19, .factor = 12},
      {.kernel = Kernel::gate_rows, .rows = 5, .cols = 19},
      {.kernel = Kernel::gather_rows, .rows = 9, .cols = 19},
      {.kernel = Kernel::expert, .rows = 5, .cols = 19, .inner = 23},
      {.kernel = Kernel::expert, .rows = 5, .cols = 19, .inner = 23, .bias = true, .limit = 1.5},
      {.kernel = Kernel::combine, .rows = 5, .cols = 19, .inner = 2, .present = 10},
      {.kernel = Kernel::combine, .rows = 5, .cols = 19, .inner = 2, .present = 3}};
  // The last row of which has a slot that is there.
  const std::vector<KeySpan> chunks{{.queries = 3, .first_key = 0, .keys = 20, .causal = true},
                                    {.queries = 1, .first_key = 22, .keys = 31, .causal = true}};
  shapes.push_back(attention_shape(Kernel::attention, whole_sequences({3, 37}), 40));
  shapes.push_back(attention_shape(Kernel::attention, chunks, 53));
  shapes.push_back(shapes.back());
  shapes.back().window = 7;
  shapes.back().sinks = true;
  // Values of 9 elements, the first of each of 12.
  shapes.push_back(attention_shape(Kernel::latent_attention, chunks, 53));
  shapes.back().kv_heads = 1;
  shapes.push_back(attention_shape(
      Kernel::attention_part,
      {{.queries = 3, .first_key = 0, .keys = 20}, {.queries = 2, .first_key = 20, .keys = 1, .causal = true}}, 22));
  OpShape route{.kernel = Kernel::route,
                .rows = 9,
                .cols = 2,
                .inner = 6,
                .normalise = true,
                .groups = 1,
                .top_groups = 1,
                .factor = 1};
  shapes.push_back(route);
  route.normalise = false;
  shapes.push_back(route);
  route.sigmoid = route.bias = true;
  route.groups = 3;
  route.top_groups = 2;
  route.factor = 2.5;
  shapes.push_back(route);
  shapes.push_back({.kernel = Kernel::route,
                    .rows = 9,
                    .cols = 2,
                    .inner = 6,
                    .sparsemixer = true,
                    .jitter = 0.2,
                    .groups = 1,
                    .top_groups = 1,
                    .factor = 1});
  return shapes;
}

double flops_of(const RankOps& ops) {
  double flops = 0;
  for (const CountedOp& op : ops.ops) flops += cost_of(op.shape, 2).flops * static_cast<double>(op.count);
  return flops;
}

TEST(RankOps, AddUpToTheFlopsOfTheRankInBothPhases) {
  std::vector<std::string> names(std::begin(testing::kShippedPlans), std::end(testing::kShippedPlans));
  for (const char* model : {"deepseek-v3", "gpt-oss-120b", "glm-4.5", "qwen3-235b-a22b", "llama-3.1-70b"}) {
    names.push_back(std::string("models/") + model);
  }
  for (const std::string& name : names) {
    const Plan plan = testing::shipped_plan(name);
    const std::vector<RankFigures> figures = rank_figures(plan);
    for (const int rank : {0, plan.world() - 1}) {
      const RankOps prefill = rank_ops(plan, rank, Format::bf16, DryPass::prefill);
      const RankOps decode = rank_ops(plan, rank, Format::bf16, DryPass::decode);

      const RankFigures& of_rank = figures[static_cast<std::size_t>(rank)];
      EXPECT_NEAR(flops_of(prefill) / of_rank.prefill.flops(), 1, 1e-12) << name << " " << rank;
      EXPECT_NEAR(flops_of(decode) / of_rank.decode.flops(), 1, 1e-12) << name << " " << rank;
      EXPECT_THAT(prefill.left_out, IsEmpty());
      EXPECT_THAT(decode.left_out, IsEmpty());
    }
  }
}

TEST(RankOps, DecodeLatentAttentionAsEnginesDo) {
  const Plan plan = testing::shipped_plan("models/deepseek-v3");
  const auto names = [&](DryPass pass) {
    std::set<Op> all;
    for (const CountedOp& op : rank_ops(plan, 0, Format::bf16, pass).ops) all.insert(op.names.begin(), op.names.end());
    return all;
  };

  const std::set<Op> prefill = names(DryPass::prefill), decode = names(DryPass::decode);

  for (const Op op : {Op::attention_absorb, Op::attention_latent_context, Op::attention_expand}) {
    EXPECT_TRUE(decode.contains(op)) << to_string(op);
    EXPECT_FALSE(prefill.contains(op)) << to_string(op);
  }
  for (const Op op : {Op::attention_kv, Op::attention_heads, Op::attention_context}) {
    EXPECT_FALSE(decode.contains(op)) << to_string(op);
    EXPECT_TRUE(prefill.contains(op)) << to_string(op);
  }
}

TEST(RankOps, AddUpToTheFlopsOfTheRankHoweverKeysTravel) {
  for (const CpComm comm : {CpComm::p2p, CpComm::all_gather, CpComm::a2a, CpComm::a2a_p2p}) {
    Plan plan = testing::shipped_plan("cp4_tp2_ep4");
    plan.parallel.cp_comm = comm;
    plan.parallel.cp_a2a = comm == CpComm::a2a_p2p ? 2 : 1;

    for (const int rank : {0, 3}) {
      const RankFigures of_rank = rank_figures(plan)[static_cast<std::size_t>(rank)];
      EXPECT_NEAR(flops_of(rank_ops(plan, rank, Format::bf16, DryPass::prefill)) / of_rank.prefill.flops(), 1, 1e-12);
      EXPECT_NEAR(flops_of(rank_ops(plan, rank, Format::bf16, DryPass::decode)) / of_rank.decode.flops(), 1, 1e-12);
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

TEST(RankOps, OfEveryShapeHaveANameOfTheirOwn) {
  std::set<std::string> names;
  std::size_t shapes = 0;
  for (const char* name : {"deepseek-v3", "gpt-oss-120b"}) {
    for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
      names.clear();
      const RankOps of_rank = rank_ops(testing::shipped_plan(std::string("models/") + name), 0, Format::bf16, pass);
      for (const CountedOp& op : of_rank.ops) names.insert(benchmark_name(op.shape));
      shapes = of_rank.ops.size();
      EXPECT_EQ(names.size(), shapes) << name;
    }
  }
}

TEST(PreparedOp, IsRightInEveryFormat) {
  for (const Format format : kFormats) {
    for (const OpShape& shape : every_kernel()) {
      const PreparedOp op = prepare_op(shape, format);

      op.run();

      EXPECT_THAT(op.wrong(), IsEmpty()) << to_string(shape.kernel) << " " << ops::to_string(format);
    }
  }
}

TEST(PreparedOp, IsFoundWrongWhenOneElementIsOffByMoreThanRounding) {
  for (const Format format : kFormats) {
    for (const OpShape& shape : every_kernel()) {
      const PreparedOp op = prepare_op(shape, format);
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
  const OpShape attention{.kernel = Kernel::attention,
                          .rows = 65536,
                          .cols = 8192,
                          .head_dim = 128,
                          .value_dim = 128,
                          .kv_heads = 8,
                          .keys = 65536,
                          .spans = whole_sequences({65536})};

  OpShape latents = attention;
  latents.kernel = Kernel::latent_attention;
  latents.head_dim = 192;
  latents.kv_heads = 1;

  const OpShape fewer_rows = part_within(linear, Format::fp32, 1, share);
  EXPECT_LT(fewer_rows.rows, linear.rows);
  EXPECT_DOUBLE_EQ(share, static_cast<double>(fewer_rows.rows) / static_cast<double>(linear.rows));

  const OpShape fewer_heads = part_within(attention, Format::fp32, 1, share);
  EXPECT_EQ(fewer_heads.rows, attention.rows);
  EXPECT_EQ(fewer_heads.cols / fewer_heads.kv_heads, attention.cols / attention.kv_heads);
  EXPECT_DOUBLE_EQ(share, static_cast<double>(fewer_heads.kv_heads) / 8);
  EXPECT_DOUBLE_EQ(cost_of(fewer_heads, 4).flops, share * cost_of(attention, 4).flops);

  const OpShape fewer_queries = part_within(latents, Format::fp32, 1, share);
  EXPECT_EQ(fewer_queries.kv_heads, 1);
  EXPECT_LT(fewer_queries.heads(), latents.heads());
  EXPECT_DOUBLE_EQ(cost_of(fewer_queries, 4).flops, share * cost_of(latents, 4).flops);
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
