#include "emu/report/baseline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "emu/judge/hash.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

BaselineTap tap_of(std::string name, std::int64_t rows, std::int64_t cols, const std::vector<double>& values,
                   ops::Format format) {
  BaselineTap tap{.name = std::move(name), .rows = rows, .cols = cols, .norm = norm_of(values), .hash = {}};
  if (format == ops::Format::exact) tap.hash = hash_bits(values);
  return tap;
}

Baseline recorded(ops::Format format) {
  Baseline baseline{
      .plan = "small", .format = format, .inputs = hash_inputs(testing::small_plan({}), format), .taps = {}};
  baseline.taps.push_back(tap_of("embedding", 2, 2, {1.0, -2.0, 0.5, 0.25}, format));
  baseline.taps.push_back(tap_of("logits", 1, 3, {0.1, 0.2, 0.3}, format));
  return baseline;
}

std::string refusal(std::string text, const std::string& from, const std::string& to) {
  const std::size_t position = text.find(from);
  if (position == std::string::npos) return "the text to replace is not there";
  const LoadedBaseline loaded = parse_baseline(text.replace(position, from.size(), to), "b.json");
  EXPECT_EQ(loaded.baseline.has_value(), loaded.problems.empty());
  return loaded.problems.empty() ? "" : loaded.problems[0].field + ": " + loaded.problems[0].message;
}

TEST(HashBits, DependsOnEveryBitAndOnTheOrder) {
  const std::vector<double> values = {1.0, 2.0, 3.0, 0.0};

  const std::uint64_t hash = hash_bits(values);

  EXPECT_EQ(hash, hash_bits(std::vector<double>{1.0, 2.0, 3.0, -0.0}));
  EXPECT_NE(hash, hash_bits(std::vector<double>{2.0, 1.0, 3.0, 0.0}));
  EXPECT_NE(hash, hash_bits(std::vector<double>{1.0, 2.0, 3.0}));
  EXPECT_NE(hash, hash_bits(std::vector<double>{1.0, 2.0, std::nextafter(3.0, 4.0), 0.0}));
  EXPECT_NE(hash, hash_bits(std::vector<double>{1.0, 2.0, -3.0, 0.0}));
}

TEST(HashBits, IsTheSameEverywhere) {
  // A change of the hash would make every recorded baseline useless.
  EXPECT_EQ(hash_bits(std::vector<double>{}), 0U);
  EXPECT_EQ(hash_bits(std::vector<double>{0.0}), 0xe220a8397b1dcdafU);
  EXPECT_EQ(hash_bits(std::vector<double>{1.0, -0.5}), 0x9fc87a72abc73d7dU);
}

TEST(HashInputs, LeavesOutTheDegreesOnlyInExact) {
  const Plan plan = testing::small_plan({});
  Plan sharded = plan, other_lengths = plan, other_model = plan;
  sharded.parallel.tp = 2;
  sharded.parallel.ep = 2;
  sharded.workload.microbatches = 2;
  other_lengths.workload.lengths = {2, 3};
  other_model.model.layers.kind(0).attention.rope.theta = 1e4;

  EXPECT_EQ(hash_inputs(plan, ops::Format::exact), hash_inputs(sharded, ops::Format::exact));
  EXPECT_NE(hash_inputs(plan, ops::Format::fp32), hash_inputs(sharded, ops::Format::fp32));
  EXPECT_NE(hash_inputs(plan, ops::Format::exact), hash_inputs(other_lengths, ops::Format::exact));
  EXPECT_NE(hash_inputs(plan, ops::Format::exact), hash_inputs(other_model, ops::Format::exact));
}

TEST(BaselineOf, KeepsShapesAndNormsAndInExactTheHash) {
  VerifyReport report{.format = ops::Format::exact};
  report.taps = {{.name = "t", .rows = 1, .cols = 2, .norm = 5, .exact_hash = 7}, {.name = "u", .norm = 1}};

  const Baseline baseline = baseline_of(report);

  ASSERT_EQ(baseline.taps.size(), 2U);
  EXPECT_EQ(baseline.taps[0], (BaselineTap{.name = "t", .rows = 1, .cols = 2, .norm = 5, .hash = 7}));
  EXPECT_EQ(baseline.taps[1].hash, std::nullopt);
}

TEST(BaselineJson, ReadsBackWhatItWrote) {
  for (const ops::Format format : {ops::Format::exact, ops::Format::fp32, ops::Format::bf16}) {
    const Baseline baseline = recorded(format);

    const LoadedBaseline loaded = parse_baseline(to_json(baseline), "b.json");

    ASSERT_TRUE(loaded.baseline.has_value()) << loaded.problems[0].field << loaded.problems[0].message;
    EXPECT_EQ(*loaded.baseline, baseline);
  }
}

TEST(BaselineJson, KeepsATapALine) {
  const std::string text = to_json(recorded(ops::Format::exact));

  EXPECT_THAT(text, HasSubstr("\n    {\"name\":\"embedding\",\"rows\":2,\"cols\":2,\"norm\":2.304"));
  EXPECT_THAT(text, ::testing::ContainsRegex("\\}\n  \\],\n  \"digest\": \"[0-9a-f]{16}\"\n\\}\n$"));
}

TEST(BaselineJson, RefusesWhatIsNoBaseline) {
  const std::string text = to_json(recorded(ops::Format::exact));

  EXPECT_THAT(refusal(text, "baseline/1", "baseline/2"), HasSubstr("schema: \"shardproof.baseline/2\""));
  EXPECT_THAT(refusal(text, "\"plan\"", "\"plans\""), HasSubstr("plan"));
  EXPECT_THAT(refusal(text, "\"exact\"", "\"fp8\""), HasSubstr("format: \"fp8\""));
  EXPECT_THAT(refusal(text, "\"exact\"", "\"fp32\""), HasSubstr("taps[0].hash: only the format exact has one"));
  EXPECT_THAT(refusal(text, "\"inputs\": \"", "\"inputs\": \"x"), HasSubstr("16 hexadecimal digits"));
  EXPECT_THAT(refusal(text, "\"rows\":2", "\"rows\":-2"), HasSubstr("taps[0].rows"));
  EXPECT_THAT(refusal(text, "\"rows\":2", "\"rows\":2.5"), HasSubstr("taps[0].rows"));
  EXPECT_THAT(refusal(text, "\"rows\":2", "\"rows\":2,\"rows\":2"), HasSubstr("twice"));
  EXPECT_THAT(refusal(text, "\"rows\":2,", ""), HasSubstr("taps[0].rows"));
  EXPECT_THAT(refusal(text, "\"norm\":2", "\"norm\":-2"), HasSubstr("taps[0].norm"));
  EXPECT_THAT(refusal(text, "\"norm\":", "\"norm\":\"inf\",\"x\":"), HasSubstr("taps[0].norm"));
  EXPECT_THAT(refusal(text, "\"hash\":", "\"hush\":"), HasSubstr("taps[0]."));
  EXPECT_THAT(refusal(text, "\"taps\"", "\"tap\""), HasSubstr("tap"));
  EXPECT_NE(refusal(text, "  ],\n", ""), "");
  EXPECT_NE(parse_baseline("[]", "b.json").problems.size(), 0U);
  EXPECT_NE(parse_baseline("", "b.json").problems.size(), 0U);
  EXPECT_NE(load_baseline("/nonexistent.json").problems.size(), 0U);
}

TEST(BaselineJson, IsNotEditedUnnoticed) {
  for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
    const std::string text = to_json(recorded(format));
    const std::string inputs = text.substr(text.find("\"inputs\": \"") + 11, 16);

    EXPECT_THAT(refusal(text, "small", "other"), HasSubstr("edited since it was recorded"));
    EXPECT_THAT(refusal(text, "generated", "checkpoint"), HasSubstr("digest"));
    EXPECT_THAT(refusal(text, "embedding", "logits"), HasSubstr("digest"));
    EXPECT_THAT(refusal(text, "\"norm\":2.3", "\"norm\":2.4"), HasSubstr("digest"));
    EXPECT_THAT(refusal(text, "\"rows\":2", "\"rows\":4"), HasSubstr("digest"));
    EXPECT_THAT(refusal(text, inputs.substr(0, 4), inputs[0] == '0' ? "1111" : "0000"), HasSubstr("digest"));
  }
}

TEST(BaselineJson, OfBeforeTheDigestIsReadWithoutOne) {
  std::string text = to_json(recorded(ops::Format::exact));
  const std::size_t digest = text.find(",\n  \"digest\"");
  text.replace(digest, text.size() - digest, "\n}\n");

  const LoadedBaseline loaded = parse_baseline(text, "b.json");

  ASSERT_TRUE(loaded.baseline.has_value());
  EXPECT_EQ(*loaded.baseline, recorded(ops::Format::exact));
}

TEST(FirstChange, SeesANormThatDoesNotBelongToItsBits) {
  const Baseline before = recorded(ops::Format::exact);
  Baseline now = before;
  now.taps[0].norm *= 1 + 1e-9;

  EXPECT_EQ(first_change(before, now).value().tap, "embedding");
}

TEST(FirstChange, FindsNoneInTheSameRun) {
  EXPECT_FALSE(first_change(recorded(ops::Format::exact), recorded(ops::Format::exact)).has_value());
  EXPECT_FALSE(first_change(recorded(ops::Format::fp16), recorded(ops::Format::fp16)).has_value());
}

TEST(FirstChange, NamesTheFirstTapWhoseBitsChanged) {
  const Baseline before = recorded(ops::Format::exact);
  Baseline now = before;
  now.taps[1] = tap_of("logits", 1, 3, {0.1, 0.3, 0.2}, ops::Format::exact);

  const std::optional<BaselineChange> change = first_change(before, now);

  ASSERT_TRUE(change.has_value());
  EXPECT_EQ(change->tap, "logits");
  EXPECT_THAT(change->message, HasSubstr("bits changed"));
}

TEST(FirstChange, AllowsAFloatFormatItsRounding) {
  const Baseline before = recorded(ops::Format::fp32);
  Baseline within = before, beyond = before, not_finite = before;
  within.taps[1].norm *= 1 + 8 * 0x1p-24;
  beyond.taps[1].norm *= 1 + 32 * 0x1p-24;
  not_finite.taps[0].norm = std::numeric_limits<double>::quiet_NaN();

  EXPECT_FALSE(first_change(before, within).has_value());
  EXPECT_EQ(first_change(before, beyond).value().tap, "logits");
  EXPECT_EQ(first_change(before, not_finite).value().tap, "embedding");
}

TEST(FirstChange, NamesMissingRenamedAndReshapedTaps) {
  const Baseline before = recorded(ops::Format::exact);
  Baseline fewer = before, more = before, renamed = before, reshaped = before;
  fewer.taps.pop_back();
  more.taps.push_back({.name = "extra", .rows = 1, .cols = 1, .norm = 1, .hash = 1});
  renamed.taps[0].name = "embeddings";
  reshaped.taps[0].rows = 4;
  reshaped.taps[0].cols = 1;

  EXPECT_EQ(first_change(before, fewer).value().tap, "logits");
  EXPECT_EQ(first_change(before, more).value().tap, "extra");
  EXPECT_EQ(first_change(before, renamed).value().tap, "embedding");
  EXPECT_THAT(first_change(before, reshaped).value().message, HasSubstr("was 2 x 2, is 4 x 1"));
}

TEST(FirstChange, DoesNotCompareRunsOfOtherThings) {
  const Baseline before = recorded(ops::Format::exact);
  Baseline other_weights = before, other_inputs = before;
  other_weights.weights = "checkpoint";
  other_inputs.inputs ^= 1;

  for (const Baseline& other : {recorded(ops::Format::fp32), other_weights, other_inputs}) {
    const std::optional<BaselineChange> change = first_change(before, other);
    ASSERT_TRUE(change.has_value());
    EXPECT_EQ(change->tap, "");
    EXPECT_THAT(change->message, HasSubstr("record a new one"));
  }
}

}  // namespace
}  // namespace shardproof
