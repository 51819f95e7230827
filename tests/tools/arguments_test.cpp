// Values on the command line: what every option of every subcommand does with those that are none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/command.h"
#include "tests/tools/place.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::shardproof;
using ::testing::StartsWith;

struct Option {
  std::string command;
  std::string flag;
  std::string value;  ///< as help calls it: "N", "FILE|-"
};

/// From the help of the command itself, so that an option that is added is tested too.
std::vector<std::string> commands() {
  std::vector<std::string> names;
  std::istringstream help(shardproof("--help").out);
  bool listed = false;
  for (std::string line; std::getline(help, line);) {
    if (line.starts_with("Examples")) break;
    std::smatch name;
    if (listed && std::regex_search(line, name, std::regex("^  ([a-z]+) "))) names.push_back(name[1]);
    listed = listed || line.starts_with("Subcommands");
  }
  return names;
}

std::vector<Option> options() {
  std::vector<Option> all;
  for (const std::string& command : commands()) {
    std::istringstream help(shardproof(command + " --help").out);
    for (std::string line; std::getline(help, line);) {
      std::smatch option;
      if (std::regex_search(line, option, std::regex("^  (?:-[a-z],)?(--[a-z-]+) ([A-Za-z|.]+)"))) {
        all.push_back({command, option[1], option[2]});
      }
    }
  }
  return all;
}

TEST(Arguments, EveryCommandIsFoundInTheHelp) {
  const std::vector<std::string> names = commands();
  const std::vector<Option> all = options();

  for (const char* name : {"verify", "check", "graph", "mutate", "collectives"}) {
    EXPECT_THAT(names, ::testing::Contains(name));
  }
  EXPECT_GT(all.size(), 30U);
}

TEST(Arguments, NoOptionTakesAnEmptyValue) {
  for (const Option& option : options()) {
    for (const std::string given : {" ''", "= "}) {
      const CommandResult result = shardproof(option.command + " " + option.flag + given);

      EXPECT_EQ(result.exit_code, 2) << option.command << option.flag << given;
      EXPECT_THAT(result.err, StartsWith("shardproof: " + option.flag + ": ")) << option.command << given;
      EXPECT_EQ(result.out, "");
    }
  }
}

TEST(Arguments, AnEmptyOptionDoesNotTakeTheNextWordForItsValue) {
  const CommandResult result =
      shardproof("verify --baseline= " + testing::temporary_file("plan.json", testing::kTinyPlan));

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--baseline: the value is empty"));
}

TEST(Arguments, NoCommandTakesAnEmptyPlan) {
  for (const std::string& command : commands()) {
    EXPECT_EQ(shardproof(command + " ''").exit_code, 2) << command;
  }
}

TEST(Arguments, NumbersAreReadByOneStrictRule) {
  int numbers = 0;
  for (const Option& option : options()) {
    if (option.value != "N" && option.value != "SEED" && option.value != "X") continue;
    ++numbers;
    std::vector<std::string> texts = {"-1", "010", "1e2x", "0x10", "' 1'",  "'1 '",
                                      "+1", "one", "nan",  "inf",  "1_000", "-0"};
    // Beyond every range but that of a number that need not be whole.
    texts.emplace_back(option.value == "X" ? "1e999" : "18446744073709551616");
    for (const std::string& text : texts) {
      const CommandResult result = shardproof(option.command + " " + option.flag + "=" + text);

      EXPECT_EQ(result.exit_code, 2) << option.command << option.flag << text;
      EXPECT_THAT(result.err, StartsWith("shardproof: " + option.flag + ": '")) << option.command << text;
      EXPECT_THAT(result.err, ::testing::ContainsRegex("no (whole )?number (from [0-9]+ to [0-9]+|above 0)"));
    }
  }
  EXPECT_GE(numbers, 12);
}

TEST(Arguments, SeedsTakeAllOfTheir64Bits) {
  const std::string plan = testing::temporary_file("plan.json", testing::kTinyPlan);

  const CommandResult most = shardproof("verify " + plan + " --format exact --seed 18446744073709551615");
  const CommandResult least = shardproof("verify " + plan + " --format exact --seed 0");

  EXPECT_THAT(most.out, HasSubstr("seed 18446744073709551615"));
  EXPECT_THAT(least.out, HasSubstr("seed 0"));
}

TEST(Arguments, MoreThreadsThanHelpAreSaidAndLeftOut) {
  const std::string plan = testing::temporary_file("plan.json", testing::kTinyPlan);

  const CommandResult many = testing::shardproof_in(".", "verify " + plan + " --format exact --threads 1024 --json -",
                                                    "taskset -c $(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')");
  const CommandResult few = shardproof("verify " + plan + " --format exact --threads 2 --json -");

  EXPECT_EQ(many.exit_code, 0);
  EXPECT_THAT(many.err, HasSubstr("--threads: 1024 would only wait for one another; 32 run, 32 a core"));
  EXPECT_THAT(many.out, HasSubstr("\"threads\": 32"));
  EXPECT_EQ(few.err, "");
}

TEST(Arguments, RangesAreReadStrictlyToo) {
  for (const std::string text : {"01", "1-", "-1", "1-02", "1--2", "1- 2", "2-1", "4294967296"}) {
    EXPECT_EQ(shardproof("graph --layers=" + text).exit_code, 2) << text;
    EXPECT_EQ(shardproof("graph --ranks=" + text).exit_code, 2) << text;
  }
}

TEST(Arguments, NoGateOrOutputIsDroppedInSilence) {
  const std::string graph = SHARDPROOF_SOURCE_DIR "/tests/timeline/graphs/document_002.json";
  const std::vector<std::string> lost = {
      "verify --format exact --max-amplification 1",
      "verify --record /dev/null --amplification",
      "check --list-quantities --json /dev/null",
      "graph --audit " + graph + " -o /dev/null",
      "graph --audit " + graph + " --fold",
      "graph --audit " + graph + " --batch 4",
      "graph --json /dev/null",
  };
  for (const std::string& arguments : lost) {
    const CommandResult result = shardproof(arguments);

    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err, StartsWith("shardproof: --")) << arguments;
  }
}

TEST(Arguments, AMutationWithoutAPlaceProvesNothing) {
  // One rank has no reduction to drop.
  std::string text = testing::kTinyPlan;
  const std::string degrees = R"({"tp": 2, "dp": 2, "ep": 4})";
  text.replace(text.find(degrees), degrees.size(), "{}");
  const std::string plan = testing::temporary_file("plan.json", text);

  const CommandResult result = shardproof("mutate " + plan + " --kind attention_reduction_dropped");

  EXPECT_EQ(result.exit_code, 4) << result.out << result.err;
  EXPECT_THAT(result.err, HasSubstr("nothing was planted"));
}

}  // namespace
}  // namespace shardproof
