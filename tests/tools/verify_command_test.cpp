// The verify command: exit codes, output, and what it says of bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/tools/command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::shardproof;
using ::testing::StartsWith;
using testing::temporary_file;

std::string plan(const std::string& name) {
  return std::string(SHARDPROOF_SOURCE_DIR) + "/plans/" + name + ".json";
}

constexpr const char* kTinyPlan = R"({
  "model": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 32},
  "parallel": {"tp": 2, "dp": 2, "ep": 4},
  "workload": {"batch": 4, "sequence": 6}
})";

TEST(VerifyCommand, ProvesTheEmbeddedPlan) {
  const CommandResult result = shardproof("verify");

  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("16 virtual GPU ranks"));
  EXPECT_THAT(result.out, HasSubstr("algebra   pass"));
  EXPECT_THAT(result.out, HasSubstr("widest sum 37 of 53 bits"));
  EXPECT_THAT(result.out, HasSubstr("rounding   pass"));
  EXPECT_EQ(result.err, "");
}

class ShippedPlans : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(ShippedPlans, PassInEveryFormat) {
  const auto& [name, format] = GetParam();

  const CommandResult result = shardproof("verify " + plan(name) + " --format " + format);

  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

INSTANTIATE_TEST_SUITE_P(
    VerifyCommand, ShippedPlans,
    ::testing::Combine(::testing::Values("tp4_ep4_pp4", "tp2_ep4_pp2_dp2", "ep64_tp2", "ep16_tp2_pp4", "ep4_tp2_pp2_sp",
                                         "cp4_tp2_ep4", "tp8_ep8_all_reduce"),
                       ::testing::Values("fp64", "fp32", "bf16", "fp16")),
    [](const auto& instance) { return std::get<0>(instance.param) + "_" + std::get<1>(instance.param); });

TEST(VerifyCommand, WritesTheDocumentedJson) {
  const CommandResult result =
      shardproof("verify " + temporary_file("plan.json", kTinyPlan) + " --scale full --json -");

  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report.at("schema"), "shardproof.verify/2");
  EXPECT_EQ(report.at("verdict"), "pass");
  EXPECT_EQ(report.at("ranks"), 4);
  EXPECT_EQ(report.at("format"), "bf16");
  EXPECT_TRUE(report.at("first_divergence").is_null());
  // Of the rounding, with the steps of experts and reductions.
  EXPECT_EQ(report.at("taps").size(), 1 + 2 * (13 + 4 + 2 + 1) + 2);
  for (const auto& tap : report.at("taps")) {
    for (const char* key : {"name", "max_error", "bound", "replicas_equal"}) {
      EXPECT_TRUE(tap.contains(key)) << key;
    }
  }
  EXPECT_EQ(report.at("exact_use").at("budget_bits"), 53);
  EXPECT_LE(report.at("exact_use").at("widest_sum").at("bits"), 53);
  EXPECT_EQ(report.at("exact_use").at("grid").size(), 1 + 12 + 2);
  EXPECT_TRUE(report.at("exact_use").at("warnings").is_array());
  EXPECT_EQ(report.at("tokens_per_expert").size(), 2);
  EXPECT_EQ(report.at("router_choices"), 24 * 2);
  for (const char* key : {"plan", "seed", "threads", "problems", "collectives", "seconds"}) {
    EXPECT_TRUE(report.contains(key)) << key;
  }
}

TEST(VerifyCommand, GivesTheSameReportWhateverTheThreadsAndSchedule) {
  const std::string file = temporary_file("plan.json", kTinyPlan);
  const auto taps = [&](const std::string& flags) {
    return nlohmann::json::parse(shardproof("verify " + file + " --json - " + flags).out).at("taps");
  };

  const auto first = taps("--threads 1");

  EXPECT_EQ(taps("--threads 4"), first);
  EXPECT_EQ(taps("--schedule 7"), first);
}

TEST(VerifyCommand, KeepsAnEarlierResultWhenTheRunFails) {
  const std::string json = temporary_file("report.json", "earlier");

  const CommandResult result = shardproof("verify " + temporary_file("bad.json", "{") + " --json " + json);

  EXPECT_EQ(result.exit_code, 2);
  std::ifstream file(json);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), "earlier");
}

TEST(VerifyCommand, RefusesARunThatCannotFitWithAScaleThatWould) {
  const CommandResult result = shardproof("verify --scale full --batch 100000 --sequence 4096");

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("memory"));
  EXPECT_THAT(result.err, HasSubstr("--batch"));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these map more than any limit leaves
TEST(VerifyCommand, EveryCommandAsksForItsMemoryAndGivesAdviceThatHelps) {
  const std::string limited = "ulimit -v 220000; timeout 120";
  for (const std::string arguments : {"verify --scale full --sequence 64", "verify --batch 512 --sequence 256",
                                      "mutate --scale 4 --kind attention_reduction_dropped"}) {
    const CommandResult refused = testing::shardproof_in(".", arguments, limited);

    ASSERT_EQ(refused.exit_code, 2) << arguments << refused.out;
    EXPECT_THAT(refused.err, HasSubstr("are available under ulimit -v; --scale ")) << arguments;
    EXPECT_EQ(refused.out, "");
    std::string advice = refused.err.substr(refused.err.find("; --scale") + 2);
    advice.resize(advice.find(" would need"));
    // Proving once is enough; planting every bug takes long.
    const CommandResult helped = testing::shardproof_in(".", "verify --format exact " + advice, limited);
    EXPECT_EQ(helped.exit_code, 0) << arguments << ": " << advice << helped.err;
  }
  for (const std::string& arguments : {"graph " + plan("ep64_tp2"), std::string("collectives --ranks 64")}) {
    const CommandResult refused =
        testing::shardproof_in(".", arguments, arguments[0] == 'g' ? "ulimit -v 30000;" : "ulimit -v 24000;");

    EXPECT_EQ(refused.exit_code, 2) << arguments << refused.out;
    EXPECT_THAT(refused.err, HasSubstr("available under ulimit -v"));
  }
}
#endif

/// The arguments are made when the test runs: most need a file.
using Arguments = std::function<std::string()>;

struct BadInput {
  std::string name;
  Arguments arguments;
  std::string said;

  friend std::ostream& operator<<(std::ostream& out, const BadInput& input) { return out << input.name; }
};

class BadInputs : public ::testing::TestWithParam<BadInput> {};

TEST_P(BadInputs, GetOneClearErrorAndExitCodeTwo) {
  const CommandResult result = shardproof(GetParam().arguments());

  EXPECT_EQ(result.exit_code, 2) << result.out << result.err;
  EXPECT_THAT(result.err, HasSubstr(GetParam().said));
  EXPECT_THAT(result.err, Not(HasSubstr("internal error")));
}

Arguments command(std::string arguments) {
  return [arguments = std::move(arguments)] { return arguments; };
}

Arguments bad_plan(std::string text) {
  return [text = std::move(text)] { return "verify " + temporary_file("bad.json", text); };
}

Arguments edited(const std::string& from, const std::string& to) {
  std::string text = kTinyPlan;
  text.replace(text.find(from), from.size(), to);
  return bad_plan(text);
}

Arguments huge_plan() {
  return [] { return "verify " + temporary_file("bad.json", std::string(100 << 20, ' ')); };
}

INSTANTIATE_TEST_SUITE_P(
    VerifyCommand, BadInputs,
    ::testing::Values(BadInput{"NoSubcommand", command(""), "subcommand"},
                      BadInput{"UnknownFlag", command("verify --frmat fp32"), "--frmat"},
                      BadInput{"UnknownFormat", command("verify --format fp8"), "fp8"},
                      BadInput{"BadScale", command("verify --scale 0"), "--scale"},
                      BadInput{"BadScaleWord", command("verify --scale half"), "half"},
                      BadInput{"ZeroBatch", command("verify --batch 0"), "--batch"},
                      BadInput{"NegativeThreads", command("verify --threads -1"), "--threads"},
                      BadInput{"HugeSequence", command("verify --sequence 99999999999"), "--sequence"},
                      BadInput{"MissingFile", command("verify /nonexistent/plan.json"), "/nonexistent/plan.json"},
                      BadInput{"Directory", command("verify /tmp"), "/tmp"},
                      BadInput{"UnwritableJson", command("verify --json /nonexistent/out.json"),
                               "/nonexistent/out.json"},
                      BadInput{"Truncated", bad_plan(R"({"model": {)"), "bad.json"},
                      BadInput{"NotAnObject", bad_plan("[1, 2]"), "object"},
                      BadInput{"UnknownKey", edited("\"ep\": 4", "\"ep\": 4, \"zp\": 2"), "zp"},
                      BadInput{"DuplicateKey", edited("\"ep\": 4", "\"ep\": 4, \"ep\": 2"), "ep"},
                      BadInput{"WrongType", edited("\"ep\": 4", "\"ep\": \"four\""), "parallel.ep"},
                      BadInput{"ZeroDegree", edited("\"tp\": 2", "\"tp\": 0"), "parallel.tp"},
                      BadInput{"NegativeDegree", edited("\"tp\": 2", "\"tp\": -2"), "parallel.tp"},
                      BadInput{"AbsurdDegree", edited("\"tp\": 2", "\"tp\": 1000000000"), "parallel.tp"},
                      BadInput{"IndivisibleHeads", edited("\"tp\": 2", "\"tp\": 3"), "heads"},
                      BadInput{"NotANumber", edited("\"hidden_size\": 8", "\"hidden_size\": NaN"), "bad.json"},
                      BadInput{"DeepNesting", bad_plan(std::string(200000, '[')), "nest"},
                      BadInput{"Huge", huge_plan(), "bytes"}),
    [](const auto& instance) { return instance.param.name; });

TEST(Command, TellsItsVersionAndHelp) {
  const CommandResult version = shardproof("--version");
  const CommandResult help = shardproof("--help");

  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, StartsWith("shardproof "));
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  EXPECT_THAT(help.out, HasSubstr("Exit codes:"));
}

}  // namespace
}  // namespace shardproof
