// Latent attention served: prompts in the plain form, what comes after them in the absorbed one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "emu/run/fault.h"
#include "tests/judge/random_verification.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::explain;

constexpr ops::Format kLatentFormats[] = {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16,
                                          ops::Format::fp16};

/// Steps that have tokens in both forms, and in one alone.
Plan latent_plan(const Parallel& parallel) {
  Plan plan = testing::small_plan(parallel);
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.attention.kv_heads = layer.attention.heads;
    layer.attention.head_dim = 6;
    layer.attention.v_head_dim = 4;
    layer.attention.rope.dim = 2;
    layer.attention.q_lora_rank = 5;
    layer.attention.kv_lora_rank = 7;
  });
  plan.workload.serving = Serving{.requests = {{.prompt = 9, .output = 5},
                                               {.prompt = 4, .output = 4},
                                               {.prompt = 6, .output = 6, .arrival = 2},
                                               {.prompt = 8, .output = 3}},
                                  .max_tokens_per_step = 6,
                                  .kv_block_size = 4,
                                  .steps = {}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  return plan;
}

std::vector<Parallel> latent_shares() {
  return {{.tp = 2, .dp = 2, .ep = 4},
          {.tp = 2, .dp = 2, .pp = 2, .ep = 4, .sp = true},
          {.tp = 4, .ep = 4, .dcp = 2},
          {.tp = 4, .ep = 4, .sp = true, .dcp = 4, .dcp_interleave = 2}};
}

const TapReport* latent_tap(const VerifyReport& report, std::string_view name) {
  for (const TapReport& tap : report.taps) {
    if (tap.name == name) return &tap;
  }
  return nullptr;
}

TEST(LatentForms, PassInEveryFormatAndShare) {
  for (const Parallel& parallel : latent_shares()) {
    const Plan plan = latent_plan(parallel);
    ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
    for (const ops::Format format : kLatentFormats) {
      const VerifyReport report = verify(plan, {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format) << " " << explain(report);
    }
  }
}

TEST(LatentForms, HaveStepsOfTheirOwnThatAreHeldToWhatTheRunHad) {
  const Plan plan = latent_plan({.tp = 2, .dp = 2, .ep = 4});

  const VerifyReport report = verify(plan, {.format = ops::Format::bf16});

  for (const char* name : {"layer.1.attention.q_absorbed", "layer.1.attention.latent_context"}) {
    const TapReport* tap = latent_tap(report, name);
    ASSERT_NE(tap, nullptr) << name;
    EXPECT_GT(tap->max_error, 0) << name;
    EXPECT_LE(tap->max_error, tap->bound) << name;
  }
  Plan plain = plan;
  plain.workload.latent_decode = LatentForm::plain;
  EXPECT_EQ(latent_tap(verify(plain, {.format = ops::Format::bf16}), "layer.1.attention.q_absorbed"), nullptr);
}

/// What the latents that dcp 0 keeps give is merged twice, in layer 1 on rank 1.
class LatentsMergedTwice final : public FaultInjector {
  static bool is_here(const Rank& rank, const FaultSite& site, int keys_of) {
    return to_int(rank.id()) == 1 && site.layer == 1 && keys_of == 0;
  }

 public:
  void edit_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<float> /*context*/,
                 ops::MatrixView<float> lse) override {
    if (!is_here(rank, site, keys_of)) return;
    for (float& value : lse.span()) value += std::numbers::ln2_v<float>;
  }
  void edit_double_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<double> numerators,
                        ops::MatrixView<double> denominators) override {
    if (!is_here(rank, site, keys_of)) return;
    for (double& value : numerators.span()) value *= 2;
    for (double& value : denominators.span()) value *= 2;
  }
};

TEST(LatentForms, OverDcpHaveThePartOfEachRanksLatentsHeldToItsOpAndTheirMergeToThem) {
  const Plan plan = latent_plan({.tp = 4, .ep = 4, .dcp = 2});

  const VerifyReport report = verify(plan, {.format = ops::Format::bf16});
  LatentsMergedTwice fault;
  const VerifyReport merged_twice = verify(plan, {.format = ops::Format::bf16, .fault = &fault});
  const VerifyReport in_exact = verify(plan, {.format = ops::Format::exact, .fault = &fault});

  for (const char* name : {"layer.1.attention.latent_part.part.0", "layer.1.attention.latent_part.part.1",
                           "layer.1.attention.latent_lse.part.0", "layer.1.attention.latent_context"}) {
    const TapReport* tap = latent_tap(report, name);
    ASSERT_NE(tap, nullptr) << name;
    EXPECT_GT(tap->max_error, 0) << name;
    EXPECT_LE(tap->max_error, tap->bound) << name;
  }
  ASSERT_EQ(merged_twice.verdict, Verdict::mismatch);
  EXPECT_EQ(merged_twice.first_divergence->tap, "layer.1.attention.latent_context");
  ASSERT_EQ(in_exact.verdict, Verdict::mismatch);
  EXPECT_EQ(in_exact.first_divergence->tap, "layer.1.attention.context");
  EXPECT_EQ(in_exact.first_divergence->cause->name, "keys_counted_twice") << explain(in_exact);
}

// The bits of the two forms are not the same: agreement with the reference says which was computed.
TEST(LatentForms, DifferInTheTokensAfterPromptsAlone) {
  Plan plan = latent_plan({.tp = 2, .dp = 2, .ep = 4});
  const ExpectedTaps absorbed = prepare_reference(plan, ops::Format::exact).expected;
  const std::vector<bool> rows = absorbed_rows(plan);
  plan.workload.latent_decode = LatentForm::plain;
  const ExpectedTaps plain = prepare_reference(plan, ops::Format::exact).expected;
  const TapId id{.layer = 0, .kind = TapKind::attention_context};
  const ExpectedTap &one = absorbed.all()[static_cast<std::size_t>(absorbed.find(id))],
                    &other = plain.all()[static_cast<std::size_t>(plain.find(id))];

  std::int64_t differ = 0;
  for (std::int64_t row = 0; row < one.rows; ++row) {
    bool same = true;
    for (std::int64_t col = 0; col < one.cols; ++col) same = same && one.at(row, col) == other.at(row, col);
    EXPECT_TRUE(same || rows[static_cast<std::size_t>(row)]) << row;
    differ += same ? 0 : 1;
    for (std::int64_t col = 0; col < one.cols; ++col) EXPECT_NEAR(one.at(row, col), other.at(row, col), 0x1p-6);
  }
  EXPECT_GT(differ, std::ranges::count(rows, true) / 2);
}

/// A rank takes the last token of every chunk for one of its prompt.
class TakesTokensForPrompts final : public FaultInjector {
 public:
  void edit_microbatch(const Rank& rank, std::int64_t /*microbatch*/, RankTokens& tokens) override {
    for (std::size_t i = 0; to_int(rank.id()) == 1 && i < tokens.plain.size(); ++i) {
      tokens.plain[i] = tokens.chunks[i].count;
    }
  }
};

TEST(LatentForms, OfARankThatTakesTheOtherOneAreSeen) {
  TakesTokensForPrompts fault;
  const Plan plan = latent_plan({.tp = 2, .dp = 2, .ep = 4});

  const VerifyReport exact = verify(plan, {.format = ops::Format::exact, .fault = &fault});
  const VerifyReport rounded = verify(plan, {.format = ops::Format::fp32, .fault = &fault});

  ASSERT_EQ(exact.verdict, Verdict::mismatch);
  EXPECT_EQ(exact.first_divergence->tap, "layer.0.attention.context");
  // Its queries of latents never came.
  EXPECT_EQ(rounded.verdict, Verdict::mismatch);
  EXPECT_EQ(latent_tap(rounded, "layer.0.attention.q_absorbed")->verdict, TapVerdict::missing);
}

// Of blocks that requests share, the latents are cached once, and each request makes keys and values of its own of
// them.
TEST(LatentForms, AreEstimatedWithTheKeysThatEachRequestMakesOfSharedBlocks) {
  constexpr std::int64_t kRequests = 8, kPrompt = 4096, kShared = 4080;
  Plan plan = latent_plan({.tp = 2, .ep = 2});
  plan.workload.serving = Serving{.requests = {}, .kv_block_size = 16, .prefix_sharing = true, .steps = {}};
  plan.workload.serving->requests.assign(kRequests, {.prompt = kPrompt, .output = 1, .prefix = kShared});
  set_lengths(plan.workload);
  Plan apart = plan;
  apart.workload.serving->prefix_sharing = false;

  const double shared = estimated_bytes(plan, ops::Format::exact), all = estimated_bytes(apart, ops::Format::exact);

  // What is saved is the latents of the others, and the one request that comes in a step before them.
  const AttentionSpec& spec = plan.model.layers[0].attention;
  const double latent = static_cast<double>(spec.kv_lora_rank + spec.rope.dim);
  const double made = static_cast<double>(spec.heads * (2 * spec.head_dim + 2 * spec.value_dim()));
  const double cached = (kRequests - 1) * kShared * latent * 2 * static_cast<double>(plan.model.layers.size());
  EXPECT_GT(all, shared);
  EXPECT_LT(all - shared, 8 * 1.2 * (cached + kPrompt * (made + 2 * latent)));
}

}  // namespace
}  // namespace shardproof
