// The verifier names what a fault breaks first, in exact and in float formats.
#include "emu/run/fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "emu/verify/verify.h"

namespace shardproof {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Plan plan_of(const Parallel& parallel) {
  Plan plan;
  plan.name = "fault";
  plan.model = {.hidden_size = 16,
                .num_layers = 3,
                .num_heads = 4,
                .num_kv_heads = 4,
                .head_dim = 4,
                .expert_width = 8,
                .num_experts = 4,
                .top_k = 2,
                .vocab_size = 32};
  plan.parallel = parallel;
  plan.workload = {.lengths = {9, 8, 7, 8}, .microbatches = 1, .seed = 11};
  return plan;
}

/// Drops the all-reduce that follows an op of a layer, on every rank.
class DroppedAllReduce final : public FaultInjector {
 public:
  DroppedAllReduce(std::string_view op, int layer) : op_(op), layer_(layer) {}
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    const OpRecord& last = rank.trace().ops.back();
    return !(call.operation == Operation::all_reduce && last.op == op_ && last.layer == layer_);
  }

 private:
  std::string_view op_;
  int layer_;
};

class RotatedExpertMap final : public FaultInjector {
 public:
  void edit_layouts(std::vector<Layout>& layouts) override {
    for (Layout& layout : layouts) {
      for (int& owner : layout.expert_owner) owner = (owner + 1) % layout.parallel.ep;
    }
  }
};

class SwappedQueryHeads final : public FaultInjector {
 public:
  void edit_slice(const Rank& rank, WeightSpec& spec, Range& rows, Range& /*cols*/) override {
    if (spec.row_split != Split::q_heads || spec.layer != 1) return;
    rows.begin = spec.rows - rows.begin - rows.count;
    static_cast<void>(rank);
  }
};

class SkippedCollective final : public FaultInjector {
 public:
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    return !(to_int(rank.id()) == 2 && call.operation == Operation::all_to_all && rank.trace().ops.back().layer == 1);
  }
};

VerifyReport verify_with(FaultInjector& fault, const Plan& plan, ops::Format format) {
  return verify(plan, {.format = format, .fault = &fault});
}

class Faults : public ::testing::TestWithParam<ops::Format> {};

TEST_P(Faults, NameADroppedAllReduceWhereItIs) {
  DroppedAllReduce fault("attention.output", 1);

  const VerifyReport report = verify_with(fault, plan_of({.tp = 2, .dp = 2, .ep = 4}), GetParam());

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.1.attention.output");
  EXPECT_THAT(report.first_divergence->ranks, ElementsAre(0, 1, 2, 3));
}

TEST_P(Faults, NameAWrongExpertMap) {
  RotatedExpertMap fault;

  const VerifyReport report = verify_with(fault, plan_of({.dp = 4, .ep = 4}), GetParam());

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.0.moe.output");
}

TEST_P(Faults, NameASwappedHeadOrder) {
  SwappedQueryHeads fault;

  const VerifyReport report = verify_with(fault, plan_of({.tp = 2, .edp = 2}), GetParam());

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.1.attention.q");
}

TEST_P(Faults, ProveTheDeadlockOfASkippedCollective) {
  SkippedCollective fault;

  const VerifyReport report = verify_with(fault, plan_of({.dp = 4, .ep = 4}), GetParam());

  EXPECT_EQ(report.verdict, Verdict::deadlock);
  EXPECT_THAT(report.deadlock, HasSubstr("all_to_all"));
  EXPECT_THAT(report.deadlock, HasSubstr("rank 2"));
  const std::string json = to_json(report);
  EXPECT_TRUE(report.wait_graph.has_value() || !report.mismatched_calls.empty());
  EXPECT_THAT(json, ::testing::AnyOf(HasSubstr("\"wait_graph\""), HasSubstr("\"mismatched_calls\"")));
  EXPECT_THAT(json, HasSubstr("\"file\": \"emu/run/moe_block.cpp\""));
}

INSTANTIATE_TEST_SUITE_P(Formats, Faults,
                         ::testing::Values(ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::fp16,
                                           ops::Format::bf16),
                         [](const auto& instance) { return std::string(ops::to_string(instance.param)); });

TEST(Verify, RefusesAnInvalidPlanWithEveryProblem) {
  Plan plan = plan_of({.tp = 3, .ep = 1, .edp = 3});
  plan.model.top_k = 9;

  const VerifyReport report = verify(plan);

  EXPECT_EQ(report.verdict, Verdict::invalid);
  EXPECT_GE(report.problems.size(), 2U);
}

TEST(Verify, SaysThatContextParallelismIsNotExecuted) {
  const VerifyReport report = verify(plan_of({.cp = 2, .edp = 2}));

  EXPECT_EQ(report.verdict, Verdict::invalid);
  EXPECT_EQ(report.problems.front().field, "parallel.cp");
}

TEST(Verify, IsInconclusiveWhenTheWeightsAreZero) {
  class ZeroWeights final : public WeightSource {
   public:
    void read(const WeightSpec& /*spec*/, Range rows, Range cols, ops::MatrixView<double> out) const override {
      for (std::int64_t i = 0; i < rows.count; ++i) {
        for (std::int64_t j = 0; j < cols.count; ++j) out(i, j) = 0;
      }
    }
  };
  const ZeroWeights zero;

  const VerifyReport report = verify(plan_of({.tp = 2, .edp = 2}), {.format = ops::Format::exact, .weights = &zero});

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  EXPECT_THAT(report.problems.front().message, HasSubstr("zero"));
}

TEST(Verify, CountsTheTokensOfEveryExpert) {
  const Plan plan = plan_of({.dp = 2, .ep = 2});

  const VerifyReport report = verify(plan, {.format = ops::Format::exact});

  ASSERT_EQ(report.tokens_per_expert.size(), 3U);
  for (const auto& layer : report.tokens_per_expert) {
    EXPECT_EQ(layer[0] + layer[1] + layer[2] + layer[3], 32 * 2);
  }
}

TEST(Prove, GivesTheAlgebraThenTheRounding) {
  const VerifyReport report = prove(plan_of({.tp = 2, .dp = 2, .ep = 4}), {.format = ops::Format::bf16});

  ASSERT_TRUE(report.algebra.has_value());
  EXPECT_EQ(report.algebra->verdict, Verdict::pass);
  EXPECT_EQ(report.format, ops::Format::bf16);
  EXPECT_EQ(report.verdict, Verdict::pass);
}

TEST(Prove, StopsAtAWrongAlgebra) {
  DroppedAllReduce fault("attention.output", 0);

  const VerifyReport report = prove(plan_of({.tp = 2, .edp = 2}), {.format = ops::Format::bf16, .fault = &fault});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.format, ops::Format::exact);
}

}  // namespace
}  // namespace shardproof
