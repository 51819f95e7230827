// Presets, what a plan states beside them, and how long calls take on them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "emu/timeline/collective_time.h"
#include "emu/timeline/hardware_model.h"

namespace shardproof {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const HardwareModel& card(const char* name) {
  return built_in_hardware().find(name)->model;
}

std::string first_problem(const std::string& text) {
  const LoadedHardware loaded = parse_hardware(text, "mine.json", built_in_hardware());
  EXPECT_EQ(loaded.book.has_value(), loaded.problems.empty());
  return loaded.problems.empty() ? "" : loaded.problems[0].field + ": " + loaded.problems[0].message;
}

std::string with_preset(const std::string& members) {
  return R"({"schema": "shardproof.hardware/1", "presets": {"mine": {"like": "h100", "sources": ["mine"], )" + members +
         "}}}";
}

TEST(HardwarePresets, AreThoseThatAPlanMayName) {
  std::vector<std::string> names;
  for (const HardwarePreset& preset : built_in_hardware().presets) names.push_back(preset.name);

  EXPECT_EQ(names.size(), std::size(kHardwarePresets));
  for (const std::string_view name : kHardwarePresets) EXPECT_THAT(names, Contains(std::string(name)));
  for (const HardwarePreset& preset : built_in_hardware().presets) EXPECT_THAT(preset.sources, Not(IsEmpty()));
}

TEST(HardwarePresets, GiveAMissingRateThatOfTheNextWiderFormat) {
  EXPECT_EQ(card("h100").peak(Rate::fp4), card("h100").peak(Rate::fp8));
  EXPECT_GT(card("b200").peak(Rate::fp4), card("b200").peak(Rate::fp8));
  EXPECT_GT(card("h100").peak(Rate::fp8), card("h100").peak(Rate::bf16));
}

TEST(HardwareFiles, AreRefusedWithTheFieldThatIsWrong) {
  EXPECT_EQ(first_problem(with_preset(R"("memory_gb": 96)")), "");
  EXPECT_THAT(first_problem("{}"), HasSubstr("schema: \"shardproof.hardware/1\" is needed"));
  EXPECT_THAT(first_problem(with_preset(R"("memory_bandwidth_tbps": 0)")),
              HasSubstr("presets.mine.memory_bandwidth_tbps: 0"));
  EXPECT_THAT(first_problem(with_preset(R"("inside": {"gbps": -1})")), HasSubstr("presets.mine.inside.gbps: -1"));
  EXPECT_THAT(first_problem(with_preset(R"("memory_efficiency": [[1, 0.1], [2, 0.9]])")), HasSubstr("less time"));
  EXPECT_THAT(first_problem(with_preset(R"("memory_efficiency": [[1]])")), HasSubstr("[size, share] is needed"));
  EXPECT_THAT(first_problem(with_preset(R"("lanuch_us": 3)")), HasSubstr("lanuch_us"));
  EXPECT_THAT(first_problem(R"({"schema": "shardproof.hardware/1", "presets": {"mine": {"like": "h9000"}}})"),
              HasSubstr("\"h9000\" stands nowhere before"));
  EXPECT_THAT(first_problem(R"({"schema": "shardproof.hardware/1", "presets": {"mine": {"sources": ["x"]}}})"),
              HasSubstr("presets.mine.tflops.bf16: is missing"));
}

TEST(HardwareFiles, TakeNoResidualsFromTheCardThatTheyAreLike) {
  const std::string measured = R"({"schema": "shardproof.hardware/1", "presets": {
    "a": {"like": "h100", "sources": ["x"], "residuals": {"decode": {"low": -0.1, "high": 0.2, "cases": 5}}},
    "b": {"like": "a", "sources": ["y"]}}})";

  const LoadedHardware loaded = parse_hardware(measured, "mine.json", built_in_hardware());

  ASSERT_TRUE(loaded.book);
  EXPECT_TRUE(loaded.book->find("a")->model.decode.calibrated());
  EXPECT_FALSE(loaded.book->find("b")->model.decode.calibrated());
}

TEST(ChosenHardware, IsThePlansOwnWhereItStatesIt) {
  const Hardware stated{.gpus = 16,
                        .tflops = 400,
                        .mfu = 0.6,
                        .memory_bandwidth_tbps = 1.8,
                        .bandwidth_utilization = 0.8,
                        .link_gbps = 100,
                        .link_latency_us = 5};

  const HardwareChoice choice = choose_hardware(built_in_hardware(), stated, {});

  EXPECT_THAT(choice.problems, IsEmpty());
  EXPECT_EQ(choice.model.peak(Rate::bf16), 400e12);
  EXPECT_DOUBLE_EQ(choice.model.compute.effective(6e9), 1e10);
  EXPECT_DOUBLE_EQ(choice.model.memory.effective(8e6), 1e7);
  EXPECT_EQ(choice.model.across.bytes_per_second, 100e9);
  EXPECT_EQ(choice.open, std::vector<std::string>{"launch and engine overhead"});
  EXPECT_EQ(choice.filled_from, "a100");
  EXPECT_FALSE(choice.calibrated_decode);
  EXPECT_LT(choice.model.decode.low, 0);
  EXPECT_GT(choice.model.decode.high, 0);
}

TEST(ChosenHardware, SaysWhichDefaultItTook) {
  const HardwareChoice by_peak = choose_hardware(built_in_hardware(), Hardware{.gpus = 8, .tflops = 1000}, {});
  const HardwareChoice nothing = choose_hardware(built_in_hardware(), std::nullopt, {});
  const HardwareChoice named = choose_hardware(built_in_hardware(), Hardware{.gpus = 8, .preset = "h200"}, {});

  ASSERT_EQ(by_peak.taken.size(), 1u);
  EXPECT_THAT(by_peak.taken[0], HasSubstr("link bandwidth, link latency"));
  EXPECT_THAT(by_peak.taken[0], HasSubstr("nearest to 1000"));
  ASSERT_EQ(nothing.taken.size(), 1u);
  EXPECT_THAT(nothing.taken[0], HasSubstr("everything of the GPUs and their links: as h100 has it"));
  EXPECT_THAT(named.taken, IsEmpty());
  EXPECT_THAT(named.open, IsEmpty());
  EXPECT_EQ(named.name, "h200");
}

TEST(ChosenHardware, IsRefusedWhereNobodyKnowsIt) {
  const HardwareChoice card = choose_hardware(built_in_hardware(), std::nullopt, {.preset = "h9000"});
  const HardwareChoice engine = choose_hardware(built_in_hardware(), std::nullopt, {.preset = "mi300x", .engine = "x"});

  ASSERT_EQ(card.problems.size(), 1u);
  EXPECT_THAT(card.problems[0].message, HasSubstr("\"h9000\" is not known; one of h100"));
  ASSERT_EQ(engine.problems.size(), 1u);
  EXPECT_THAT(engine.problems[0].message, HasSubstr("\"x\" is not calibrated on mi300x"));
}

constexpr GroupShape kNode{.ranks = 8, .nodes = 1, .per_node = 8};
constexpr GroupShape kFourNodes{.ranks = 32, .nodes = 4, .per_node = 8};

TEST(CollectiveTime, OfOneRankIsNone) {
  EXPECT_EQ(collective_time(card("h100"), {}, Operation::all_to_all, 0).seconds(), 0);
}

TEST(CollectiveTime, NeverFallsAsBytesGrowOrLinksSlowDown) {
  HardwareModel slower = card("h100");
  for (Link* link : {&slower.inside, &slower.across}) link->bytes_per_second *= 0.7;
  for (const Operation operation : {Operation::all_reduce, Operation::all_gather, Operation::reduce_scatter,
                                    Operation::all_to_all, Operation::send}) {
    for (const GroupShape& group : {kNode, kFourNodes, GroupShape{.ranks = 3, .nodes = 3, .per_node = 1}}) {
      double before = 0;
      for (double bytes = 1; bytes < 1e11; bytes *= 1.3) {
        const double seconds = collective_time(card("h100"), group, operation, bytes).seconds();
        EXPECT_GE(seconds, before);
        EXPECT_LE(seconds, collective_time(slower, group, operation, bytes).seconds());
        before = seconds;
      }
    }
  }
}

TEST(CollectiveTime, AcrossNodesIsBoundByTheLinkOfEachGpu) {
  // 32 ranks on 4 nodes: an all-reduce of S has 2 (M-1)/M S/G = 0.1875 S to send across, an all-to-all 24/31 of it.
  HardwareModel hardware;
  hardware.inside.bytes_per_second = 1e15;
  hardware.across.bytes_per_second = 1e9;
  const double whole = 1e6;

  EXPECT_NEAR(collective_time(hardware, kFourNodes, Operation::all_reduce, 2 * 31.0 / 32 * whole).seconds(),
              0.1875 * whole / 1e9, 1e-12);
  EXPECT_NEAR(collective_time(hardware, kFourNodes, Operation::all_to_all, whole).seconds(), 24.0 / 31 * whole / 1e9,
              1e-12);
  EXPECT_NEAR(collective_time(hardware, kFourNodes, Operation::send, whole).seconds(), whole / 1e9, 1e-12);
}

}  // namespace
}  // namespace shardproof
