// Faults in an op are not blamed on the sharding: an op that differs from its reference is named as that, a fault that
// no hypothesis explains stays unknown.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>

#include "emu/diagnose/diagnose.h"
#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/run/fault.h"
#include "tests/diagnose/edited.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::EditedResult;
using ::testing::HasSubstr;

Plan sharded_plan() {
  return testing::small_plan({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2});
}

struct TappedOp {
  TapKind kind;
  friend std::ostream& operator<<(std::ostream& out, const TappedOp& op) { return out << tap_row(op.kind).name; }
};

class OpsThatDiffer : public ::testing::TestWithParam<TappedOp> {};

TEST_P(OpsThatDiffer, FromTheReferenceAreNamedWhereTheyStandAndNoShardingIs) {
  testing::expect_an_op_that_differs_is_named(sharded_plan(), GetParam().kind);
}

INSTANTIATE_TEST_SUITE_P(Taps, OpsThatDiffer,
                         ::testing::Values(TappedOp{TapKind::embedding}, TappedOp{TapKind::attention_norm},
                                           TappedOp{TapKind::attention_q}, TappedOp{TapKind::attention_k},
                                           TappedOp{TapKind::attention_v}, TappedOp{TapKind::attention_context},
                                           TappedOp{TapKind::attention_output}, TappedOp{TapKind::attention_residual},
                                           TappedOp{TapKind::moe_norm}, TappedOp{TapKind::router_logits},
                                           TappedOp{TapKind::router_choice}, TappedOp{TapKind::router_weights},
                                           TappedOp{TapKind::moe_output}, TappedOp{TapKind::moe_residual},
                                           TappedOp{TapKind::final_norm}, TappedOp{TapKind::logits}));

/// Against the reference of a model that has a parameter of an op otherwise.
std::string cause_against(const std::function<void(ModelConfig&)>& edit, const char* tap) {
  const Plan plan = sharded_plan();
  Plan other = plan;
  edit(other.model);
  const PreparedReference reference = prepare_reference(other, ops::Format::exact);
  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .prepared = &reference});
  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, tap);
  return report.first_divergence->cause->name;
}

TEST(OpsWithAnotherParameter, AreNoFaultOfTheSharding) {
  EXPECT_EQ(cause_against([](ModelConfig& model) { model.rms_norm_eps = 0.02; }, "layer.0.attention.norm"),
            "op_differs");
  EXPECT_EQ(
      cause_against(
          [](ModelConfig& model) { model.layers.edit([](LayerSpec& layer) { layer.attention.rope.theta = 900; }); },
          "layer.0.attention.q"),
      "op_differs");
  EXPECT_EQ(cause_against(
                [](ModelConfig& model) {
                  model.layers.edit([](LayerSpec& layer) { layer.feed_forward.norm_topk_prob = false; });
                },
                "layer.0.moe.router_weights"),
            "op_differs");
}

struct Fault {
  Op op;
  int layer;
  const char* tap;
  friend std::ostream& operator<<(std::ostream& out, const Fault& fault) { return out << to_string(fault.op); }
};

class FaultsInsideAnOp : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultsInsideAnOp, ThatNoHypothesisExplainsStayUnknown) {
  EditedResult fault(GetParam().op, GetParam().layer, testing::add_noise);

  const VerifyReport report = verify(sharded_plan(), {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, GetParam().tap);
  EXPECT_EQ(report.first_divergence->cause->name, "unknown") << report.first_divergence->cause->evidence;
}

INSTANTIATE_TEST_SUITE_P(
    Ops, FaultsInsideAnOp,
    ::testing::Values(
        Fault{Op::embedding, -1, "embedding"}, Fault{Op::attention_norm, 0, "layer.0.attention.norm"},
        Fault{Op::attention_norm, 2, "layer.2.attention.norm"}, Fault{Op::attention_q, 1, "layer.1.attention.q"},
        Fault{Op::attention_k, 1, "layer.1.attention.k"}, Fault{Op::attention_v, 1, "layer.1.attention.v"},
        Fault{Op::attention_rope_q, 1, "layer.1.attention.q"}, Fault{Op::attention_rope_k, 1, "layer.1.attention.k"},
        Fault{Op::attention_context, 1, "layer.1.attention.context"},
        Fault{Op::attention_output, 1, "layer.1.attention.output"},
        Fault{Op::attention_residual, 1, "layer.1.attention.residual"}, Fault{Op::moe_norm, 1, "layer.1.moe.norm"},
        Fault{Op::router_logits, 1, "layer.1.moe.router_logits"}, Fault{Op::moe_expert, 1, "layer.1.moe.output"},
        Fault{Op::moe_combine, 1, "layer.1.moe.output"}, Fault{Op::moe_residual, 1, "layer.1.moe.residual"},
        Fault{Op::final_norm, -1, "final_norm"}, Fault{Op::logits, -1, "logits"}));

TEST(AResidualSum, TakenTwiceOnOneRankIsNoTermOnEveryRank) {
  EditedResult fault(Op::attention_residual, 1, [](ops::MatrixView<double> result) {
    for (ops::Index row = 0; row < result.rows; ++row) {
      for (double& value : result.row(row)) value *= 2;
    }
  });

  const VerifyReport report = verify(sharded_plan(), {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->cause->name, "wrong_residual_sum");
  EXPECT_THAT(report.first_divergence->cause->evidence, HasSubstr("2 * residual + 2 * output on ranks"));
}

}  // namespace
}  // namespace shardproof
