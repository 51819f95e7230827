// shardproof time, as a user calls it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/tools/command.h"

namespace shardproof::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

std::string plan(const std::string& name) {
  return std::string(SHARDPROOF_SOURCE_DIR) + "/plans/" + name + ".json";
}

std::string small_plan(const std::string& hardware) {
  return temporary_file("plan.json", R"({"name": "small", "model": {"model_type": "mixtral", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "num_local_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 50}, "parallel": {"tp": 2, "ep": 2},
    "workload": {"batch": 2, "sequence": 8}, "hardware": {"gpus": 2)" +
                                         hardware + "}}");
}

TEST(TimeCommand, PrintsIntervalsAndTheDefaultThatWasTaken) {
  const CommandResult run = shardproof("time " + plan("ep4_tp2_pp2_sp"));

  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("hardware: the plan's own figures"));
  EXPECT_THAT(run.out, HasSubstr("open: link bandwidth, link latency, launch and engine overhead: as a100 has it"));
  EXPECT_THAT(run.out, HasSubstr("uncalibrated: nothing was measured on this hardware"));
  EXPECT_THAT(run.out, HasSubstr("first token, last request"));
  EXPECT_THAT(run.out, HasSubstr("routing even"));
  EXPECT_THAT(run.out, HasSubstr("critical path"));
  EXPECT_THAT(run.err, IsEmpty());
}

TEST(TimeCommand, ExplainsWhatEveryKernelAndCallTakes) {
  const CommandResult run = shardproof("time " + plan("ep64_tp2") + " --preset h100 --explain");

  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("of 989.4 TFLOP/s (bf16) + "));
  EXPECT_THAT(run.out, HasSubstr("of 3.35 TB/s + "));
  EXPECT_THAT(run.out, HasSubstr("all_to_all over ep: "));
}

TEST(TimeCommand, WritesIntervalsSharesAndTheCriticalPathAsJson) {
  const CommandResult run = shardproof("time " + plan("ep4_tp2_pp2_sp") + " --preset h200 --json -");

  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = Json::parse(run.out);
  EXPECT_THAT(run.out, ::testing::StartsWith("{\n  \"schema\": \"shardproof.time/1\""));
  for (const char* figure : {"seconds_per_output_token", "prompt_tokens_per_second", "output_tokens_per_second"}) {
    EXPECT_LE(json[figure]["low"], json[figure]["value"]) << figure;
    EXPECT_LE(json[figure]["value"], json[figure]["high"]) << figure;
  }
  for (const char* pass : {"prefill", "decode"}) {
    double sum = 0;
    for (const auto& share : json[pass]["shares"]) sum += share.get<double>();
    EXPECT_NEAR(sum, 1, 1e-9);
    EXPECT_FALSE(json[pass]["critical_path"].empty());
  }
  EXPECT_LE(json["seconds_to_first_token"]["p50"]["value"], json["seconds_to_first_token"]["max"]["value"]);
}

TEST(TimeCommand, IsTheSameAgainAndWithFewerProcessors) {
  const std::string arguments = "time " + plan("ep64_tp2") + " --preset h100 --json -";

  const CommandResult first = shardproof(arguments), again = shardproof_in(".", arguments, "taskset -c 0");

  ASSERT_EQ(first.exit_code, 0);
  EXPECT_EQ(first.out, again.out);
}

TEST(TimeCommand, TakesThePlansPresetAndAFileOfOnesOwn) {
  const std::string mine = temporary_file("mine.json", R"({"schema": "shardproof.hardware/1", "presets": {
    "h100": {"like": "h100", "memory_bandwidth_tbps": 33.5, "launch_us": 0, "sources": ["a wish"]}}})");
  const std::string named = small_plan(R"(, "preset": "h100")");

  const Json before = Json::parse(shardproof("time " + named + " --json -").out);
  const Json after = Json::parse(shardproof("time " + named + " --json - --calibrate " + mine).out);

  EXPECT_EQ(before["hardware"]["name"], "h100");
  EXPECT_EQ(before["plan"]["hardware"]["preset"], "h100");
  EXPECT_TRUE(before["hardware"]["open"].empty());
  EXPECT_LT(after["seconds_per_output_token"]["value"], before["seconds_per_output_token"]["value"]);
  EXPECT_FALSE(after["seconds_per_output_token"]["calibrated"]);
}

TEST(TimeCommand, RefusesWhatItCannotTime) {
  const std::string wrong = temporary_file("wrong.json", R"({"schema": "shardproof.hardware/1", "presets": {
    "x": {"like": "h100", "sources": ["x"], "memory_bandwidth_tbps": 0}}})");
  struct Case {
    std::string arguments;
    const char* message;
  };
  for (const Case& one : {
           Case{"--preset h9000", "--preset: \"h9000\" is not known; one of h100"},
           Case{small_plan(R"(, "preset": "h9000")"), "hardware.preset: \"h9000\"; one of a100, h100"},
           Case{small_plan(R"(, "memory_bandwidth_tbps": 0)"), "hardware.memory_bandwidth_tbps: 0"},
           Case{"--engine nobody", "--engine: \"nobody\" is not calibrated on h100"},
           Case{"--calibrate " + wrong, "presets.x.memory_bandwidth_tbps: 0"},
           Case{"--calibrate nowhere.json", "nowhere.json"},
           Case{"--format int3", "int3"},
           Case{"--trace-dir nowhere", "--trace-dir: \"nowhere\" is no folder"},
           Case{"--style kineto", "--style belongs to --trace-dir"},
           Case{"--anchors --preset h100", "--anchors projects what was published"},
           Case{"--list-presets --json -", "--list-presets needs no plan"},
           Case{plan("no_such_plan"), "no_such_plan"},
       }) {
    const CommandResult run = shardproof("time " + one.arguments);
    EXPECT_EQ(run.exit_code, 2) << one.arguments;
    EXPECT_THAT(run.err, HasSubstr(one.message)) << one.arguments;
    EXPECT_THAT(run.out, IsEmpty()) << one.arguments;
  }
}

TEST(TimeCommand, ListsPresetsWithTheirSources) {
  const CommandResult run = shardproof("time --list-presets");

  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, HasSubstr("h800  989.4 TFLOP/s bf16"));
  EXPECT_THAT(run.out, HasSubstr("data sheet"));
}

}  // namespace
}  // namespace shardproof::testing
