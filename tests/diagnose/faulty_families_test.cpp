// Faults in what some families, caches and context parallelism have beside: in each op, each call of a collective and
// each table, with what is said of them. An op that differs is no fault of the sharding; what nothing explains is
// unknown.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>

#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "emu/run/fault.h"
#include "tests/diagnose/edited.h"
#include "tests/diagnose/family_plans.h"
#include "tests/judge/dropped_call.h"

namespace shardproof {
namespace {

using testing::cached;
using testing::cached_latents;
using testing::cached_over_dcp;
using testing::deepseek;
using testing::EditedResult;
using testing::gathered_keys;
using testing::gathered_tokens;
using testing::gpt_oss;
using testing::granite;
using ::testing::HasSubstr;
using testing::heads_over_cp;
using testing::olmoe;
using testing::phimoe;
using testing::qwen;
using testing::ring;
using testing::tokens_everywhere;

/// A tap of a plan whose reference is edited: the op that makes it differs, and nothing else.
struct Tapped {
  const char* name;
  Plan (*plan)();
  TapKind kind;
  friend std::ostream& operator<<(std::ostream& out, const Tapped& tapped) {
    return out << tapped.name << "." << tap_row(tapped.kind).name;
  }
};

class FamiliesOps : public ::testing::TestWithParam<Tapped> {};

TEST_P(FamiliesOps, ThatDifferFromTheReferenceAreNamedAndNoShardingIs) {
  const Plan plan = GetParam().plan();
  ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

  testing::expect_an_op_that_differs_is_named(plan, GetParam().kind);
}

INSTANTIATE_TEST_SUITE_P(
    Taps, FamiliesOps,
    ::testing::Values(
        Tapped{"deepseek", deepseek, TapKind::attention_q_latent},
        Tapped{"deepseek", deepseek, TapKind::attention_q_latent_norm},
        Tapped{"deepseek", deepseek, TapKind::attention_kv_latent},
        Tapped{"deepseek", deepseek, TapKind::attention_kv_latent_norm},
        Tapped{"deepseek", deepseek, TapKind::attention_q}, Tapped{"deepseek", deepseek, TapKind::attention_k},
        Tapped{"deepseek", deepseek, TapKind::attention_v}, Tapped{"deepseek", deepseek, TapKind::attention_context},
        Tapped{"deepseek", deepseek, TapKind::router_scores}, Tapped{"deepseek", deepseek, TapKind::router_choice},
        Tapped{"deepseek", deepseek, TapKind::router_weights}, Tapped{"deepseek", deepseek, TapKind::mlp_output},
        Tapped{"deepseek", deepseek, TapKind::moe_sum}, Tapped{"gpt_oss", gpt_oss, TapKind::attention_q},
        Tapped{"gpt_oss", gpt_oss, TapKind::attention_context}, Tapped{"gpt_oss", gpt_oss, TapKind::attention_output},
        Tapped{"gpt_oss", gpt_oss, TapKind::router_logits}, Tapped{"gpt_oss", gpt_oss, TapKind::moe_output},
        Tapped{"phimoe", phimoe, TapKind::attention_norm}, Tapped{"phimoe", phimoe, TapKind::moe_norm},
        Tapped{"phimoe", phimoe, TapKind::router_choice}, Tapped{"phimoe", phimoe, TapKind::router_weights},
        Tapped{"phimoe", phimoe, TapKind::final_norm}, Tapped{"phimoe", phimoe, TapKind::logits},
        Tapped{"olmoe", olmoe, TapKind::attention_q}, Tapped{"olmoe", olmoe, TapKind::attention_k},
        Tapped{"qwen", qwen, TapKind::attention_q}, Tapped{"qwen", qwen, TapKind::shared_gate},
        Tapped{"qwen", qwen, TapKind::shared_output}, Tapped{"qwen", qwen, TapKind::moe_sum},
        Tapped{"granite", granite, TapKind::embedding_scaled}, Tapped{"granite", granite, TapKind::attention_residual},
        Tapped{"granite", granite, TapKind::moe_residual}, Tapped{"granite", granite, TapKind::logits},
        Tapped{"cached", cached, TapKind::attention_context},
        Tapped{"dcp", cached_over_dcp, TapKind::attention_context}, Tapped{"ring", ring, TapKind::attention_context},
        Tapped{"ring", ring, TapKind::attention_q}, Tapped{"gathered_keys", gathered_keys, TapKind::attention_context},
        Tapped{"heads_over_cp", heads_over_cp, TapKind::attention_context},
        Tapped{"gathered_tokens", gathered_tokens, TapKind::moe_output},
        Tapped{"tokens_everywhere", tokens_everywhere, TapKind::moe_output}));

/// A model that has a parameter of an op otherwise than the reference's.
struct Parameter {
  const char* name;
  Plan (*plan)();
  void (*edit)(ModelConfig& model);
  const char* tap;
  friend std::ostream& operator<<(std::ostream& out, const Parameter& parameter) { return out << parameter.name; }
};

template <auto member, auto part>
void times(ModelConfig& model, double factor) {
  model.layers.edit([&](LayerSpec& layer) { (layer.*part).*member *= factor; });
}

class OpsOfAnotherParameter : public ::testing::TestWithParam<Parameter> {};

TEST_P(OpsOfAnotherParameter, AreNoFaultOfTheSharding) {
  const Plan plan = GetParam().plan();
  Plan other = plan;
  GetParam().edit(other.model);
  const PreparedReference reference = prepare_reference(other, ops::Format::exact);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .prepared = &reference});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, GetParam().tap);
  EXPECT_EQ(report.first_divergence->cause->name, "op_differs") << report.first_divergence->cause->evidence;
}

constexpr auto kFeedForward = &LayerSpec::feed_forward;

INSTANTIATE_TEST_SUITE_P(
    Parameters, OpsOfAnotherParameter,
    ::testing::Values(
        Parameter{"epsilon_of_layer_norm", phimoe, [](ModelConfig& m) { m.rms_norm_eps = 0.02; },
                  "layer.0.attention.norm"},
        Parameter{"epsilon_of_latent_norms", deepseek, [](ModelConfig& m) { m.rms_norm_eps = 0.02; },
                  "layer.0.attention.norm"},
        Parameter{"theta", gpt_oss,
                  [](ModelConfig& m) { m.layers.edit([](LayerSpec& layer) { layer.attention.rope.theta = 900; }); },
                  "layer.0.attention.q"},
        Parameter{"score_scale", gpt_oss,
                  [](ModelConfig& m) {
                    m.layers.edit([](LayerSpec& layer) {
                      layer.attention.attention_multiplier = 1.01 * layer.attention.score_scale();
                    });
                  },
                  "layer.0.attention.context"},
        Parameter{"score_scale_of_latent_attention", deepseek,
                  [](ModelConfig& m) {
                    m.layers.edit([](LayerSpec& layer) {
                      layer.attention.attention_multiplier = 1.01 * layer.attention.score_scale();
                    });
                  },
                  "layer.0.attention.context"},
        Parameter{"window", gpt_oss,
                  [](ModelConfig& m) { m.layers.edit([](LayerSpec& layer) { layer.attention.sliding_window = 3; }); },
                  "layer.0.attention.context"},
        Parameter{"scaling_of_weights", deepseek,
                  [](ModelConfig& m) { times<&FeedForwardSpec::routed_scaling_factor, kFeedForward>(m, 1.25); },
                  "layer.0.moe.router_weights"},
        Parameter{"groups", deepseek,
                  [](ModelConfig& m) { m.layers.edit([](LayerSpec& layer) { layer.feed_forward.top_groups = 2; }); },
                  "layer.0.moe.router_choice"},
        Parameter{"jitter", phimoe,
                  [](ModelConfig& m) { times<&FeedForwardSpec::router_jitter, kFeedForward>(m, 0.5); },
                  "layer.0.moe.router_weights"},
        Parameter{"limit_of_swiglu", gpt_oss,
                  [](ModelConfig& m) { times<&FeedForwardSpec::swiglu_limit, kFeedForward>(m, 0.5); },
                  "layer.0.moe.output"},
        Parameter{"multiplier_of_the_embedding", granite, [](ModelConfig& m) { m.embedding_multiplier = 4; },
                  "embedding.scaled"},
        Parameter{"multiplier_of_the_residual", granite, [](ModelConfig& m) { m.residual_multiplier = 0.5; },
                  "layer.0.attention.residual"},
        Parameter{"scaling_of_logits", granite, [](ModelConfig& m) { m.logits_scaling = 4; }, "logits"}));

/// Noise in the result of one op, on the ranks of tp 0.
struct Noise {
  const char* name;
  Plan (*plan)();
  Op op;
  const char* tap;
  friend std::ostream& operator<<(std::ostream& out, const Noise& noise) {
    return out << noise.name << "." << to_string(noise.op);
  }
};

class FaultsInsideOps : public ::testing::TestWithParam<Noise> {};

TEST_P(FaultsInsideOps, ThatNothingExplainsStayUnknown) {
  const Plan plan = GetParam().plan();
  const bool in_layer = std::string_view(GetParam().tap).starts_with("layer.");
  EditedResult fault(GetParam().op, in_layer ? 1 : -1, testing::add_noise);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, GetParam().tap);
  EXPECT_EQ(report.first_divergence->cause->name, "unknown") << report.first_divergence->cause->evidence;
}

INSTANTIATE_TEST_SUITE_P(
    Ops, FaultsInsideOps,
    ::testing::Values(Noise{"deepseek", deepseek, Op::attention_q_latent, "layer.1.attention.q_latent"},
                      Noise{"deepseek", deepseek, Op::attention_q_latent_norm, "layer.1.attention.q_latent_norm"},
                      Noise{"deepseek", deepseek, Op::attention_kv_latent, "layer.1.attention.kv_latent"},
                      Noise{"deepseek", deepseek, Op::attention_kv_latent_norm, "layer.1.attention.kv_latent_norm"},
                      Noise{"deepseek", deepseek, Op::attention_kv, "layer.1.attention.k"},
                      Noise{"deepseek", deepseek, Op::attention_context, "layer.1.attention.context"},
                      Noise{"deepseek", deepseek, Op::mlp, "layer.1.mlp.output"},
                      Noise{"deepseek", deepseek, Op::moe_sum, "layer.1.moe.sum"},
                      Noise{"gpt_oss", gpt_oss, Op::attention_context, "layer.1.attention.context"},
                      Noise{"gpt_oss", gpt_oss, Op::moe_expert, "layer.1.moe.output"},
                      Noise{"gpt_oss", gpt_oss, Op::router_logits, "layer.1.moe.router_logits"},
                      Noise{"phimoe", phimoe, Op::attention_norm, "layer.1.attention.norm"},
                      Noise{"phimoe", phimoe, Op::moe_norm, "layer.1.moe.norm"},
                      Noise{"phimoe", phimoe, Op::final_norm, "final_norm"},
                      Noise{"phimoe", phimoe, Op::logits, "logits"},
                      Noise{"olmoe", olmoe, Op::attention_squares, "layer.1.attention.q"},
                      Noise{"olmoe", olmoe, Op::attention_q_norm, "layer.1.attention.q"},
                      Noise{"olmoe", olmoe, Op::attention_k_norm, "layer.1.attention.k"},
                      Noise{"qwen", qwen, Op::attention_q_norm, "layer.1.attention.q"},
                      Noise{"qwen", qwen, Op::shared_gate, "layer.1.mlp.shared_gate"},
                      Noise{"granite", granite, Op::embedding_scale, "embedding.scaled"},
                      Noise{"granite", granite, Op::moe_residual, "layer.1.moe.residual"},
                      Noise{"cached", cached, Op::attention_context, "layer.1.attention.context"},
                      Noise{"latents", cached_latents, Op::attention_context, "layer.1.attention.context"},
                      Noise{"latents", cached_latents, Op::attention_absorb, "layer.1.attention.context"},
                      Noise{"latents", cached_latents, Op::attention_latent_context, "layer.1.attention.context"},
                      Noise{"latents", cached_latents, Op::attention_expand, "layer.1.attention.context"},
                      Noise{"dcp", cached_over_dcp, Op::attention_dcp_merge, "layer.1.attention.context"},
                      Noise{"ring", ring, Op::attention_ring_merge, "layer.1.attention.context"},
                      Noise{"gathered_keys", gathered_keys, Op::attention_context, "layer.1.attention.context"},
                      Noise{"heads_over_cp", heads_over_cp, Op::attention_context, "layer.1.attention.context"},
                      Noise{"gathered_tokens", gathered_tokens, Op::moe_expert, "layer.1.moe.output"},
                      Noise{"gathered_tokens", gathered_tokens, Op::moe_combine, "layer.1.moe.output"},
                      Noise{"tokens_everywhere", tokens_everywhere, Op::moe_expert, "layer.1.moe.output"}));

/// A sum in place that no rank takes: each keeps its own.
struct Dropped {
  const char* name;
  Plan (*plan)();
  Op op;
  const char* tap;
  const char* cause;
  friend std::ostream& operator<<(std::ostream& out, const Dropped& dropped) {
    return out << dropped.name << "." << to_string(dropped.op);
  }
};

class DroppedSums : public ::testing::TestWithParam<Dropped> {};

TEST_P(DroppedSums, AreNamedWhereverTheyStand) {
  testing::DroppedCall fault(GetParam().op, std::string_view(GetParam().tap).starts_with("layer.") ? 1 : -1);

  const VerifyReport report = verify(GetParam().plan(), {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, GetParam().tap);
  EXPECT_EQ(report.first_divergence->cause->name, GetParam().cause) << report.first_divergence->cause->evidence;
}

INSTANTIATE_TEST_SUITE_P(
    Calls, DroppedSums,
    ::testing::Values(
        Dropped{"deepseek", deepseek, Op::embedding_reduce, "embedding", "reduction_dropped"},
        Dropped{"deepseek", deepseek, Op::attention_reduce, "layer.1.attention.output", "reduction_dropped"},
        Dropped{"deepseek", deepseek, Op::mlp_reduce, "layer.1.mlp.output", "reduction_dropped"},
        Dropped{"gpt_oss", gpt_oss, Op::attention_reduce, "layer.1.attention.output", "reduction_dropped"},
        Dropped{"olmoe", olmoe, Op::attention_squares_reduce, "layer.1.attention.q", "norm_over_slice"},
        Dropped{"tokens_everywhere", tokens_everywhere, Op::moe_reduce, "layer.1.moe.output", "reduction_dropped"}));

/// Later chunks of prompts average what their own tokens give and what those before them do, in layer 1 on tp 1.
class AveragedPast final : public FaultInjector {
 public:
  bool averages_past(const Rank& rank, const FaultSite& site, std::size_t /*sequence*/) override {
    return rank.at().tp == 1 && site.layer == 1;
  }
};

TEST(AChunkAndItsPast, AveragedAreNamedInEveryFormat) {
  for (const auto plan : {cached, cached_latents}) {
    for (const ops::Format format : {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16}) {
      AveragedPast fault;

      const VerifyReport report = verify(plan(), {.format = format, .fault = &fault});

      ASSERT_EQ(report.verdict, Verdict::mismatch) << ops::to_string(format);
      EXPECT_EQ(report.first_divergence->tap, "layer.1.attention.context");
      EXPECT_EQ(report.first_divergence->cause->name, "past_not_weighed") << report.first_divergence->cause->evidence;
      EXPECT_THAT(report.first_divergence->cause->evidence, HasSubstr("before them"));
    }
  }
}

}  // namespace
}  // namespace shardproof
