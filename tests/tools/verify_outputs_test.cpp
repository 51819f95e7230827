// What verify compares with and writes beside its report: baselines, JUnit, checkpoints, orders of the all-reduce.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/tools/command.h"
#include "tests/tools/place.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::shardproof;
using testing::temporary_file;

std::string source(const std::string& path) {
  return std::string(SHARDPROOF_SOURCE_DIR) + "/" + path;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(VerifyBaseline, NamesTheFirstTapThatChanged) {
  nlohmann::json baseline = nlohmann::json::parse(read_file(source("tests/baselines/tp4_ep4_pp4.json")));
  baseline["taps"][2]["hash"] = "0123456789abcdef";
  baseline.erase("digest");

  const CommandResult result = shardproof("verify --baseline " + temporary_file("edited.json", baseline.dump()));

  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.out, HasSubstr("changed"));
  EXPECT_THAT(result.out, HasSubstr("layer.0.attention.q"));
}

TEST(VerifyBaseline, RefusesOneThatWasEdited) {
  const nlohmann::json recorded = nlohmann::json::parse(read_file(source("tests/baselines/tp4_ep4_pp4.json")));
  nlohmann::json name = recorded, norm = recorded;
  name["plan"] = "another";
  norm["taps"][3]["norm"] = 1.0;

  for (const nlohmann::json& edited : {name, norm}) {
    const CommandResult result = shardproof("verify --baseline " + temporary_file("edited.json", edited.dump()));

    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, HasSubstr("edited since it was recorded"));
  }
}

TEST(VerifyBaseline, RefusesAFileThatIsNone) {
  const CommandResult result = shardproof("verify --baseline " + temporary_file("none.json", "{}"));

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("none.json"));
}

TEST(VerifyJunit, HasACaseForEveryTap) {
  const CommandResult result = shardproof("verify --format exact --junit -");

  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("<testsuite name=\"shardproof verify tp4_ep4_pp4\" tests=\"107\" failures=\"0\""));
}

TEST(VerifyOutputs, RefuseTwoDocumentsOnStandardOutput) {
  EXPECT_EQ(shardproof("verify --json - --junit -").exit_code, 2);
}

TEST(VerifyOrders, ComparesEveryOrderOfTheAllReduce) {
  const CommandResult result = shardproof("verify --all-reduce all --wire bf16 --json -");

  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto orders = nlohmann::json::parse(result.out).at("orders");
  ASSERT_EQ(orders.size(), 5);
  for (const auto& order : orders) {
    EXPECT_EQ(order.at("report").at("verdict"), "pass");
    EXPECT_EQ(order.at("report").at("algebra").at("verdict"), "pass");
  }
  // The order is part of the result: a ring rounds elsewhere than an exchange in rank order.
  EXPECT_NE(orders[0].at("report").at("taps"), orders[1].at("report").at("taps"));
}

std::string checkpoint_plan(const std::string& checkpoint, const std::string& parallel) {
  return temporary_file("checkpoint_plan.json",
                        "{\"model\": \"" + source("tests/golden/" + checkpoint + "/config.json") +
                            "\", \"parallel\": " + parallel + ", \"workload\": {\"batch\": 3, \"sequence\": 7}}");
}

TEST(VerifyCheckpoint, PassesOnItsWeights) {
  const CommandResult result = shardproof("verify " + checkpoint_plan("grouped", R"({"tp": 2, "dp": 2, "ep": 4})") +
                                          " --checkpoint " + source("tests/golden/grouped"));

  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_THAT(result.out, HasSubstr("algebra   pass"));
}

TEST(VerifyCheckpoint, NamesWhatIsNotFinite) {
  const testing::Folder folder;
  std::filesystem::copy(source("tests/golden/grouped"), folder.path("spoilt"));
  std::string weights = folder.read("spoilt/model.safetensors");
  // A quiet NaN at the end of the data: the last element of the last tensor.
  weights.replace(weights.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));
  folder.write("spoilt/model.safetensors", weights);

  const CommandResult result = shardproof("verify " + checkpoint_plan("grouped", R"({"tp": 2, "dp": 2, "ep": 4})") +
                                          " --checkpoint " + folder.path("spoilt"));

  EXPECT_EQ(result.exit_code, 2) << result.out;
  EXPECT_THAT(result.err,
              HasSubstr("shardproof: --checkpoint: " + folder.path("spoilt/model.safetensors") + ": \"model"));
  EXPECT_THAT(result.err, HasSubstr("nan; a finite number is needed"));
}

TEST(VerifyCheckpoint, RefusesAnotherModelsPlan) {
  const CommandResult result = shardproof("verify --checkpoint " + source("tests/golden/grouped"));

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("model.hidden_size"));
}

TEST(VerifyCheckpoint, RefusesAFolderThatIsNone) {
  const CommandResult result = shardproof("verify --checkpoint /nonexistent");

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("/nonexistent"));
}

}  // namespace
}  // namespace shardproof
