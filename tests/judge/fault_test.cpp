// The verifier names what a fault breaks first, in exact and in float formats.
#include "emu/run/fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <ostream>

#include "emu/judge/verify.h"
#include "emu/report/json.h"
#include "emu/weights/checkpoint_error.h"
#include "emu/weights/store.h"
#include "tests/judge/dropped_call.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::DroppedCall;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::small_plan;

class RotatedExpertMap final : public FaultInjector {
 public:
  void edit_layouts(std::vector<Layout>& layouts) override {
    for (Layout& layout : layouts) {
      for (int& owner : layout.kinds[0].expert_owner) owner = (owner + 1) % layout.parallel.ep;
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
    return !(to_int(rank.id()) == 2 && call.operation == Operation::all_to_all && call.tag.layer == 1);
  }
};

/// Rank 2 skips a collective of layer 1, after an all-reduce of layer 0 was dropped.
class DroppedAndSkipped final : public FaultInjector {
 public:
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    return dropped_.before_call(rank, call) && skipped_.before_call(rank, call);
  }

 private:
  DroppedCall dropped_{Op::attention_reduce, 0};
  SkippedCollective skipped_;
};

/// In the first microbatch an all-reduce of layer 0 is dropped, and rank 1 skips what follows it.
class WrongThenStuck final : public FaultInjector {
 public:
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    if (call.tag.microbatch != 0 || call.tag.layer != 0) return true;
    if (is_call_of(call.tag, Op::attention_reduce)) return false;
    return !(to_int(rank.id()) == 1 && is_call_of(call.tag, Op::dispatch_counts));
  }
};

VerifyReport verify_with(FaultInjector& fault, const Plan& plan, ops::Format format) {
  return verify(plan, {.format = format, .fault = &fault});
}

/// What the test's name is followed by in lists.
struct InFormat {
  ops::Format format;
  friend std::ostream& operator<<(std::ostream& out, const InFormat& in) { return out << ops::to_string(in.format); }
};

class Faults : public ::testing::TestWithParam<InFormat> {};

TEST_P(Faults, NameADroppedAllReduceWhereItIs) {
  DroppedCall fault(Op::attention_reduce, 1);

  const VerifyReport report = verify_with(fault, small_plan({.tp = 2, .dp = 2, .ep = 4}), GetParam().format);

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.1.attention.output");
  EXPECT_THAT(report.first_divergence->ranks, ElementsAre(0, 1, 2, 3));
}

TEST_P(Faults, StayInTheReportWhenTheRunStallsAfterThem) {
  DroppedAndSkipped fault;

  const VerifyReport report = verify_with(fault, small_plan({.tp = 2, .dp = 2, .ep = 4}), GetParam().format);

  ASSERT_EQ(report.verdict, Verdict::deadlock);
  ASSERT_TRUE(report.first_divergence.has_value());
  EXPECT_EQ(report.first_divergence->tap, "layer.0.attention.output");
  ASSERT_TRUE(report.first_divergence->cause.has_value());
  EXPECT_EQ(report.first_divergence->cause->name, "reduction_dropped");
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("before the call that the run stalled in: it came first")));
}

// An op is judged on the tokens that came before the stall, though its tensor is never complete.
TEST_P(Faults, StayInTheReportWhenTheRunStallsInTheSameMicrobatch) {
  Plan plan = small_plan({.tp = 2, .pp = 2, .ep = 2});
  plan.workload.lengths = {5, 4, 6, 3};
  plan.workload.microbatches = 4;
  WrongThenStuck fault;

  const VerifyReport report = verify_with(fault, plan, GetParam().format);

  ASSERT_EQ(report.verdict, Verdict::deadlock);
  ASSERT_TRUE(report.first_divergence.has_value());
  EXPECT_EQ(report.first_divergence->tap, "layer.0.attention.output");
  EXPECT_THAT(report.first_divergence->ranks, ElementsAre(0, 1));
  ASSERT_TRUE(report.first_divergence->cause.has_value());
  EXPECT_EQ(report.first_divergence->cause->name, "reduction_dropped");
}

TEST_P(Faults, NameAWrongExpertMap) {
  RotatedExpertMap fault;

  const VerifyReport report = verify_with(fault, small_plan({.dp = 4, .ep = 4}), GetParam().format);

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  // Where the rounding is judged, an expert's steps are taps of their own.
  EXPECT_EQ(report.first_divergence->tap,
            GetParam().format == ops::Format::exact ? "layer.0.moe.output" : "layer.0.moe.expert_gate");
}

TEST_P(Faults, NameASwappedHeadOrder) {
  SwappedQueryHeads fault;

  const VerifyReport report = verify_with(fault, small_plan({.tp = 2, .edp = 2}), GetParam().format);

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.1.attention.q");
}

TEST_P(Faults, ProveTheDeadlockOfASkippedCollective) {
  SkippedCollective fault;

  const VerifyReport report = verify_with(fault, small_plan({.dp = 4, .ep = 4}), GetParam().format);

  EXPECT_EQ(report.verdict, Verdict::deadlock);
  ASSERT_TRUE(report.stall.has_value());
  EXPECT_THAT(report.stall->text, HasSubstr("all_to_all"));
  EXPECT_THAT(report.stall->text, HasSubstr("rank 2"));
  const std::string json = to_json(report);
  EXPECT_NE(report.stall->graph.has_value(), !report.stall->calls.empty());
  EXPECT_THAT(json, ::testing::AnyOf(HasSubstr("\"wait_graph\""), HasSubstr("\"mismatched_calls\"")));
  EXPECT_THAT(json, HasSubstr("emu/run/moe_block.cpp\""));
}

INSTANTIATE_TEST_SUITE_P(Formats, Faults,
                         ::testing::Values(InFormat{ops::Format::exact}, InFormat{ops::Format::fp64},
                                           InFormat{ops::Format::fp32}, InFormat{ops::Format::fp16},
                                           InFormat{ops::Format::bf16}),
                         [](const auto& instance) { return std::string(ops::to_string(instance.param.format)); });

TEST(Verify, RefusesAnInvalidPlanWithEveryProblem) {
  Plan plan = small_plan({.tp = 3, .ep = 1, .edp = 3});
  plan.model.layers.kind(0).feed_forward.top_k = 9;

  const VerifyReport report = verify(plan);

  EXPECT_EQ(report.verdict, Verdict::invalid);
  EXPECT_GE(report.problems.size(), 2U);
}

TEST(Verify, SaysThatRequestsAreNotServedWithContextParallelism) {
  Plan plan = small_plan({.cp = 2, .edp = 2});
  plan.workload.serving = Serving{.requests = {{.prompt = 4, .output = 2}}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);

  const VerifyReport report = verify(plan);

  EXPECT_EQ(report.verdict, Verdict::invalid);
  EXPECT_EQ(report.problems.front().field, "parallel.cp");
}

TEST(Verify, RefusesAModelOfWhichAPartIsNotComputed) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.layers.edit([](LayerSpec& layer) { layer.attention.rope.type = RopeType::longrope; });

  const VerifyReport report = verify(plan, {.format = ops::Format::exact});

  EXPECT_EQ(report.verdict, Verdict::invalid);
  EXPECT_THAT(report.problems.front().message, HasSubstr("longrope"));
}

TEST(Verify, ProvesAHeadThatNoRankHasInMemoryWhole) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.vocab_size = 2 * (kElementsAtOnce / plan.model.hidden_size + 5);
  plan.model.head_bias = true;
  plan.workload.lengths = {3, 2};
  plan.workload.microbatches = 1;

  for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
    const VerifyReport report = verify(plan, {.format = format});

    EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format);
  }
}

TEST(Verify, IsInconclusiveWhenTheWeightsAreZero) {
  const testing::EditedWeights zero(1, [](const WeightSpec&, std::int64_t, std::int64_t, double) { return 0.0; });

  const VerifyReport report = verify(small_plan({.tp = 2, .edp = 2}), {.format = ops::Format::exact, .weights = &zero});

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  EXPECT_THAT(report.problems.front().message, HasSubstr("zero"));
}

TEST(Verify, CountsTheTokensOfEveryExpert) {
  const Plan plan = small_plan({.dp = 2, .ep = 2});

  const VerifyReport report = verify(plan, {.format = ops::Format::exact});

  ASSERT_EQ(report.tokens_per_expert.size(), 4U);
  for (const auto& layer : report.tokens_per_expert) {
    EXPECT_EQ(layer[0] + layer[1] + layer[2] + layer[3], 64 * 2);
  }
}

TEST(Prove, GivesTheAlgebraThenTheRounding) {
  const Proof proof = prove(small_plan({.tp = 2, .dp = 2, .ep = 4}), {.format = ops::Format::bf16});

  EXPECT_EQ(proof.algebra.verdict, Verdict::pass);
  EXPECT_EQ(proof.algebra.format, ops::Format::exact);
  ASSERT_TRUE(proof.rounding.has_value());
  EXPECT_EQ(proof.rounding->format, ops::Format::bf16);
  EXPECT_EQ(proof.verdict(), Verdict::pass);
  EXPECT_EQ(&proof.last(), &*proof.rounding);
}

TEST(Prove, StopsAtAWrongAlgebra) {
  DroppedCall fault(Op::attention_reduce, 0);

  const Proof proof = prove(small_plan({.tp = 2, .edp = 2}), {.format = ops::Format::bf16, .fault = &fault});

  EXPECT_EQ(proof.verdict(), Verdict::mismatch);
  EXPECT_EQ(proof.algebra.format, ops::Format::exact);
  EXPECT_FALSE(proof.rounding.has_value());
}

/// Weights that can be read so many times.
class FailingWeights final : public WeightSource {
 public:
  explicit FailingWeights(int reads) : left_(reads) {}
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override {
    if (--left_ < 0) throw CheckpointError("w.safetensors", "", "changed during the run");
    generated_.read(spec, rows, cols, out);
  }
  bool was_asked_too_often() const { return left_ < 0; }

 private:
  GeneratedWeights generated_{1};
  mutable std::atomic<int> left_;
};

TEST(Verify, ThrowsWhatIsNotThePlansFaultInsteadOfAMismatch) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  int thrown = 0, passed = 0;
  for (int reads = 0; passed == 0; reads = reads * 5 / 4 + 1) {
    const FailingWeights weights(reads);
    try {
      EXPECT_EQ(verify(plan, {.format = ops::Format::exact, .weights = &weights}).verdict, Verdict::pass) << reads;
      EXPECT_FALSE(weights.was_asked_too_often()) << reads;
      ++passed;
    } catch (const CheckpointError&) {
      ++thrown;
    }
  }
  EXPECT_GT(thrown, 5);
}

TEST(Prove, IsTheAlgebraAloneInExact) {
  const Proof proof = prove(small_plan({.tp = 2, .edp = 2}), {.format = ops::Format::exact});

  EXPECT_EQ(proof.algebra.verdict, Verdict::pass);
  EXPECT_FALSE(proof.rounding.has_value());
  EXPECT_EQ(to_json(proof), to_json(proof.algebra));
}

TEST(Prove, RefusesAPlanThatIsNotRunnable) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.layers.edit([](LayerSpec& layer) { layer.attention.rope.type = RopeType::longrope; });

  const Proof proof = prove(plan);

  EXPECT_EQ(proof.verdict(), Verdict::invalid);
  EXPECT_EQ(proof.algebra.problems.front().field, "model.rope_scaling.long_factor");
  EXPECT_FALSE(proof.rounding.has_value());
}

}  // namespace
}  // namespace shardproof
