// What the command does to the files that it is given.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/tools/command.h"
#include "tests/tools/place.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;
using testing::CommandResult;
using testing::Folder;
using ::testing::HasSubstr;
using testing::shardproof;
using ::testing::StartsWith;

/// A plan, a baseline of it, and links to both.
class Files : public ::testing::Test {
 protected:
  Files() {
    folder.write("plan.json", testing::kTinyPlan);
    folder.write("model.json", R"({"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "vocab_size": 32})");
    folder.write("with_model.json", R"({"model": "model.json", "parallel": {"tp": 2, "ep": 2}})");
    EXPECT_EQ(run("verify plan.json --record baseline.json").exit_code, 0);
    fs::create_hard_link(folder.path("baseline.json"), folder.path("hard.json"));
    fs::create_symlink("baseline.json", folder.path("soft.json"));
    fs::create_symlink("not_yet.json", folder.path("dangling.json"));
  }

  /// In the folder.
  CommandResult run(const std::string& arguments, const std::string& before = "") const {
    return testing::shardproof_in(folder.path(""), arguments, before);
  }
  std::string all_texts() const {
    std::string text;
    for (const char* name : {"plan.json", "baseline.json", "model.json", "with_model.json"}) text += folder.read(name);
    return text;
  }

  Folder folder;
};

TEST_F(Files, AGateThatFailsKeepsWhatItIsHeldTo) {
  const std::string before = folder.read("baseline.json");

  for (const std::string record : {"baseline.json", "./baseline.json", "hard.json", "soft.json"}) {
    const CommandResult result = run("verify plan.json --baseline baseline.json --seed 2 --record " + record);

    EXPECT_EQ(result.exit_code, 2) << record;
    EXPECT_THAT(result.err, HasSubstr("--record: '" + record + "' is the baseline")) << record;
  }

  EXPECT_EQ(folder.read("baseline.json"), before);
  EXPECT_EQ(run("verify plan.json --baseline baseline.json --seed 2").exit_code, 1);
  EXPECT_EQ(run("verify plan.json --baseline baseline.json").exit_code, 0);
}

TEST_F(Files, NoOutputReplacesAnInput) {
  fs::copy(SHARDPROOF_SOURCE_DIR "/tests/golden/grouped", folder.path("checkpoint"));
  folder.write(
      "of_checkpoint.json",
      R"({"model": "checkpoint/config.json", "parallel": {"tp": 2}, "workload": {"batch": 2, "sequence": 5}})");
  const std::string before = all_texts();
  const std::size_t entries = folder.entries();

  for (const std::string arguments :
       {"verify plan.json --json plan.json", "verify plan.json --junit ../*/./plan.json",
        "verify plan.json --baseline baseline.json --json baseline.json",
        "verify plan.json --baseline hard.json --json soft.json", "verify with_model.json --json model.json",
        "check with_model.json --markdown model.json", "check plan.json --json plan.json",
        "mutate plan.json --json plan.json", "graph plan.json -o plan.json", "graph with_model.json -o model.json",
        "graph plan.json --audit baseline.json --json baseline.json",
        "verify of_checkpoint.json --checkpoint checkpoint --json checkpoint/model.safetensors",
        "verify of_checkpoint.json --checkpoint checkpoint --json checkpoint/config.json",
        "check plan.json >> plan.json"}) {
    const CommandResult result = run(arguments);

    EXPECT_EQ(result.exit_code, 2) << arguments << result.err;
  }

  EXPECT_EQ(all_texts(), before);
  EXPECT_EQ(folder.entries(), entries);
}

TEST_F(Files, NoTwoOutputsGoToOneFile) {
  for (const std::string arguments :
       {"verify plan.json --json a --junit a", "verify plan.json --json a --junit ./a",
        "verify plan.json --json not_yet.json --junit dangling.json",
        "verify plan.json --json hard.json --record soft.json", "check plan.json --json a --markdown a",
        "verify plan.json --json a > a", "verify plan.json --json /dev/stdout > a"}) {
    const CommandResult result = run(arguments);

    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err, HasSubstr("goes too; each needs a file of its own")) << arguments;
  }
  EXPECT_EQ(run("verify plan.json --json /dev/null --junit /dev/null").exit_code, 0);
}

TEST_F(Files, AnOutputIsWrittenThroughALinkThatStaysOne) {
  ASSERT_EQ(run("check plan.json --json soft.json").exit_code, 0);
  ASSERT_EQ(run("check plan.json --json dangling.json").exit_code, 0);

  EXPECT_TRUE(fs::is_symlink(folder.path("soft.json")));
  EXPECT_THAT(folder.read("baseline.json"), HasSubstr("shardproof.check/1"));
  EXPECT_TRUE(fs::is_symlink(folder.path("dangling.json")));
  EXPECT_THAT(folder.read("not_yet.json"), HasSubstr("shardproof.check/1"));
}

TEST_F(Files, AnOutputKeepsItsModeAndANewOneGetsTheUsersMask) {
  folder.write("private.json", "");
  chmod(folder.path("private.json").c_str(), 0640);

  ASSERT_EQ(run("check plan.json --json private.json").exit_code, 0);
  ASSERT_EQ(run("check plan.json --json new.json; exit $?", "umask 027;").exit_code, 0);

  struct stat status {};
  stat(folder.path("private.json").c_str(), &status);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
  stat(folder.path("new.json").c_str(), &status);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
}

TEST_F(Files, AReaderSeesTheOldFileOrTheNewOne) {
  folder.write("report.json", "earlier");
  const int reader = open(folder.path("report.json").c_str(), O_RDONLY);

  ASSERT_EQ(run("check plan.json --json report.json").exit_code, 0);

  char text[16] = {};
  EXPECT_EQ(read(reader, text, sizeof text), 7);
  EXPECT_EQ(std::string(text), "earlier");
  close(reader);
  EXPECT_THAT(folder.read("report.json"), StartsWith("{"));
}

TEST_F(Files, AFileThatMustNotBeWrittenIsNotReplaced) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everything";
  folder.write("fixed.json", "earlier");
  chmod(folder.path("fixed.json").c_str(), 0444);

  const CommandResult result = run("check plan.json --json fixed.json");

  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(folder.read("fixed.json"), "earlier");
}

TEST_F(Files, ANameAsLongAsNamesMayBeIsWritten) {
  const std::string name(255, 'n');

  EXPECT_EQ(run("check plan.json --json " + name).exit_code, 0);
  EXPECT_THAT(folder.read(name), StartsWith("{"));
}

TEST_F(Files, APipeOrDeviceThatGivesNothingIsRefused) {
  mkfifo(folder.path("pipe").c_str(), 0600);
  fs::create_directory(folder.path("checkpoint"));
  mkfifo(folder.path("checkpoint/config.json").c_str(), 0600);
  folder.write("of_pipe.json", R"({"model": "pipe", "parallel": {}})");
  folder.write("of_device.json", R"({"model": "/dev/zero", "parallel": {}})");

  for (const std::string arguments :
       {"verify pipe", "verify of_pipe.json", "verify plan.json --baseline pipe", "graph plan.json --audit pipe",
        "verify plan.json --checkpoint checkpoint", "check /dev/zero", "check /dev/null", "check of_device.json",
        "verify plan.json --baseline /dev/null", "graph plan.json --audit /dev/zero"}) {
    const CommandResult result = run(arguments, "timeout 20");

    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err,
                ::testing::AnyOf(HasSubstr("is a pipe to which nobody writes"), HasSubstr("is a device or a socket")))
        << arguments;
  }
  for (const std::string arguments : {"verify plan.json --json pipe", "graph plan.json -o pipe"}) {
    const CommandResult result = run(arguments, "timeout 20");

    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err, HasSubstr("nobody reads the pipe 'pipe'"));
  }
}

TEST_F(Files, APipeWithSomebodyAtItsOtherEndIsReadAndWritten) {
  mkfifo(folder.path("pipe").c_str(), 0600);

  EXPECT_EQ(run("check pipe", "(sleep 0.1; cat plan.json > pipe) & timeout 20").exit_code, 0);
  EXPECT_EQ(run("check plan.json --json pipe; wait", "(sleep 0.1; cat pipe > piped.json) & timeout 20").exit_code, 0);
  EXPECT_THAT(folder.read("piped.json"), HasSubstr("shardproof.check/1"));
  EXPECT_TRUE(fs::is_fifo(folder.path("pipe")));
}

TEST_F(Files, AFullDiskIsSaidWhereverOutputGoes) {
  for (const std::string arguments :
       {"verify plan.json > /dev/full", "verify plan.json --json - > /dev/full", "verify --help > /dev/full",
        "--version > /dev/full", "check plan.json > /dev/full", "check --list-quantities > /dev/full",
        "check plan.json --markdown - > /dev/full", "graph plan.json > /dev/full",
        "mutate plan.json --kind attention_reduction_dropped > /dev/full",
        "collectives --operation barrier > /dev/full"}) {
    const CommandResult result = run(arguments);

    EXPECT_EQ(result.exit_code, 70) << arguments;
    EXPECT_THAT(result.err, HasSubstr("shardproof: standard output: No space left on device")) << arguments;
  }
  for (const std::string flag : {"--json", "--junit", "--record"}) {
    const CommandResult result = run("verify plan.json " + flag + " /dev/full");

    EXPECT_EQ(result.exit_code, 70) << flag;
    EXPECT_THAT(result.err, HasSubstr(flag + ": writing '/dev/full': No space left on device"));
  }
}

TEST_F(Files, AClosedStandardOutputIsAnErrorAndGetsIntoNoFile) {
  const CommandResult result = run("check plan.json --json report.json >&-");

  EXPECT_EQ(result.exit_code, 70);
  EXPECT_THAT(result.err, HasSubstr("standard output: Bad file descriptor"));
  EXPECT_THAT(folder.read("report.json"), StartsWith("{\n  \"schema\""));
}

}  // namespace
}  // namespace shardproof
