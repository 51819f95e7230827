// `verify --dump` and `judge`, as a user calls them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/tools/command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::shardproof;
using testing::temporary_file;

/// A dump of the plan's run; its folder is new.
std::string dumped(const std::string& name, const std::string& arguments) {
  const std::string folder = ::testing::TempDir() + "/judge_command_" + name;
  std::filesystem::remove_all(folder);
  const CommandResult result = shardproof("verify " + arguments + " --dump " + folder);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return folder;
}

/// Overwrites bytes at the end of a file: values of its last tensor.
void spoil(const std::string& path, const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-static_cast<std::streamoff>(bytes.size()), std::ios::end);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

TEST(JudgeCommand, PassesADumpOfOurOwnRun) {
  const std::string folder = dumped("own", "--format bf16");

  const CommandResult text = shardproof("judge " + folder + " " + folder + "/plan.json");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("rounding   pass  bf16 (eager): 179 taps"));

  const CommandResult json = shardproof("judge " + folder + " " + folder + "/plan.json --profile ours --json -");
  const auto document = nlohmann::json::parse(json.out);
  EXPECT_EQ(document.at("schema"), "shardproof.verify/2");
  EXPECT_EQ(document.at("dump").at("judged"), 179);
  EXPECT_EQ(document.at("dump").at("profile"), "ours");
}

TEST(JudgeCommand, ExitsOneForAWrongValueAndTwoForOneThatIsNone) {
  const std::string folder = dumped("wrong", "--format fp32");
  const std::string rank = folder + "/rank_15.safetensors", plan = " " + folder + "/plan.json";
  // The last tensor is the rank's part of the logits.
  spoil(rank, std::string("\x00\x00\x00\x42", 4));
  const CommandResult wrong = shardproof("judge " + folder + plan);
  EXPECT_EQ(wrong.exit_code, 1) << wrong.err;
  EXPECT_THAT(wrong.out, HasSubstr("first divergence: logits on ranks 15"));
  EXPECT_THAT(wrong.out, HasSubstr("got 32"));

  spoil(rank, std::string("\x00\x00\xc0\x7f", 4));
  const CommandResult none = shardproof("judge " + folder + plan);
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_THAT(none.err, HasSubstr("rank_15.safetensors: logits: row 127, column 23 is not a number"));

  std::filesystem::remove(rank);
  const CommandResult missing = shardproof("judge " + folder + plan);
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.err, HasSubstr("rank_15.safetensors is missing: the plan has 16 ranks"));
}

TEST(JudgeCommand, RefusesWhatItCannotRead) {
  const std::string folder = dumped("refused", "--format bf16");
  const std::string plan = folder + "/plan.json";

  EXPECT_EQ(shardproof("judge " + folder).exit_code, 2);
  EXPECT_THAT(shardproof("judge /nowhere " + plan).err, HasSubstr("/nowhere: no such file or folder"));
  EXPECT_THAT(shardproof("judge " + folder + " " + plan + " --names " + temporary_file("n.json", "{\"a\": 1}")).err,
              HasSubstr("the name of a tap or null is needed"));
  EXPECT_THAT(shardproof("judge " + folder + " " + plan + " --format fp32").err,
              HasSubstr("BF16 is no type for a value of a run in fp32"));
  EXPECT_EQ(shardproof("judge " + folder + " " + plan + " --profile best").exit_code, 2);
  EXPECT_THAT(shardproof("verify --dump " + folder).err, HasSubstr("is not empty"));
  EXPECT_THAT(shardproof("verify --format exact --dump " + folder + "_exact").err, HasSubstr("float format"));
}

}  // namespace
}  // namespace shardproof
