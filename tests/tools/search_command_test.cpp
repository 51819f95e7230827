// shardproof search, as a user calls it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "tests/tools/command.h"

namespace shardproof::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

constexpr const char* kModel = R"("model_type": "mixtral", "hidden_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "num_local_experts": 4,
  "num_experts_per_tok": 2, "vocab_size": 64, "torch_dtype": "bfloat16")";

std::string small_config() {
  return temporary_file("config.json", std::string("{") + kModel + "}");
}

std::string small_plan() {
  return temporary_file("searched.json", std::string(R"({"name": "small", "model": {)") + kModel +
                                             R"(}, "hardware": {"gpus": 4, "memory_gb": 40, "preset": "h100"},
    "parallel": {"tp": 4}, "workload": {"batch": 8, "prompt": 16, "output": 4}})");
}

/// A folder that is not there yet.
std::string new_folder(const std::string& name) {
  const std::string folder = std::filesystem::path(small_config()).parent_path() / name;
  std::filesystem::remove_all(folder);
  return folder;
}

TEST(SearchCommand, ListsTheBestWithAReasonForEachLoser) {
  const CommandResult run = shardproof("search " + small_config() + " --gpus 4 --preset h100 --batch 8 --prompt 16");

  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("mixtral on 4 GPUs, 8 a node, 80 GB each; hardware: h100"));
  EXPECT_THAT(run.out, HasSubstr("8 requests of 16 tokens in, 128 out; most tokens/s"));
  EXPECT_THAT(run.out, HasSubstr("the best\n"));
  EXPECT_THAT(run.out, HasSubstr(" % slower: "));
  EXPECT_THAT(run.out, HasSubstr("the best lies in: tokens/s "));
  EXPECT_THAT(run.err, IsEmpty());
}

TEST(SearchCommand, WritesPlansThatTimeProjectsAlikeAndThatVerify) {
  const std::string folder = new_folder("winners");

  const CommandResult run = shardproof("search " + small_plan() + " --write " + folder + " --top 2 --prove 1 --json -");

  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json found = Json::parse(run.out);
  EXPECT_EQ(found["schema"], "shardproof.search/1");
  EXPECT_EQ(found["proven"], Json::array({"pass"}));
  EXPECT_EQ(found["given"]["axes"]["tp"], 4);
  EXPECT_GT(found["given"]["better"], 0);
  for (const int i : {1, 2}) {
    const CommandResult timed = shardproof("time " + folder + "/best_" + std::to_string(i) + ".json --json -");
    ASSERT_EQ(timed.exit_code, 0) << timed.err;
    const Json time = Json::parse(timed.out), layout = found["layouts"][static_cast<std::size_t>(i - 1)];
    EXPECT_EQ(time["seconds_per_output_token"]["value"], layout["seconds_per_output_token"]["value"]);
    EXPECT_EQ(time["seconds_to_first_token"]["max"]["value"], layout["seconds_to_first_token"]["value"]);
  }
  EXPECT_FALSE(std::filesystem::exists(folder + "/best_3.json"));
}

TEST(SearchCommand, SaysTheSameOnAnyNumberOfThreads) {
  const std::string call = "search " + small_plan() + " --json - --threads ";

  EXPECT_EQ(shardproof(call + "1").out, shardproof(call + "3").out);
}

TEST(SearchCommand, TakesACheckpointsFolder) {
  const std::string folder = new_folder("checkpoint");
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << "{" << kModel << "}";

  EXPECT_EQ(shardproof("search " + folder + " --gpus 2 --preset a100 --batch 4 --output 0 --min ttft").exit_code, 0);
}

TEST(SearchCommand, TakesTheFormatOfTheCacheFromTheModel) {
  const std::string config = temporary_file("quantised.json", std::string("{") + kModel + R"(, "quantization_config": {
      "quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}})");

  const CommandResult run = shardproof("search " + config + " --gpus 4 --preset h100 --batch 8 --prompt 16 --json -");

  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["base"]["workload"]["kv_cache_dtype"], "fp8");
}

TEST(SearchCommand, EndsWith1WhereNothingKeepsTheLimits) {
  const CommandResult run = shardproof("search " + small_plan() + " --slo tpot=1us");

  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("no layout keeps the limits of --slo"));
}

TEST(SearchCommand, EndsWith1WhereNothingFits) {
  const CommandResult run = shardproof("search " + small_plan() + " --memory-gb 0.0001");

  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("no layout fits"));
}

TEST(SearchCommand, RefusesWhatItCannotTake) {
  const std::string config = "search " + small_config(), plan = "search " + small_plan();
  const std::pair<std::string, std::string> wrong[] = {
      {"search", "MODEL is needed"},
      {"search nowhere.json --gpus 2", "nowhere.json: no such file"},
      {config + " --preset h100", "--gpus: how many there are is needed"},
      {config + " --gpus 4", "--preset: "},
      {config + " --gpus 4 --preset h1", R"(--preset: "h1" is not known)"},
      {config + " --gpus 0 --preset h100", "--gpus: '0' is no whole number from 1 to 65536"},
      {plan + " --slo ttft=10", "--slo: ttft: '10' has no unit; s, ms or us is needed, as in ttft=50ms"},
      {plan + " --slo tpot=10h", "has the unit 'h'"},
      {plan + " --slo tpot=-1ms", "'-1' is no number above 0"},
      {plan + " --slo itl=1ms", "'itl=1ms' is none of ttft=10s, tpot=50ms"},
      {plan + " --slo ttft=1s,ttft=2s", "ttft is there twice"},
      {plan + " --max throughput --min tpot", "--max and --min: one objective is needed"},
      {plan + " --batch 8,4", "--batch: 4 after 8; sizes that grow are needed"},
      {plan + " --batch 8,x", "--batch: 'x' is no whole number"},
      {plan + " --memory-gb 0", "--memory-gb: '0' is no number above 0"},
      {plan + " --write " + small_config(), "is no folder"},
  };
  for (const auto& [call, message] : wrong) {
    const CommandResult run = shardproof(call);
    EXPECT_EQ(run.exit_code, 2) << call;
    EXPECT_THAT(run.err, HasSubstr(message)) << call;
    EXPECT_THAT(run.out, IsEmpty()) << call;
  }
}

}  // namespace
}  // namespace shardproof::testing
