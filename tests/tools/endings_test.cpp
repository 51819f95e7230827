// Ends that come from outside: signals, and no memory.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>

#include "tests/tools/command.h"
#include "tests/tools/place.h"
#include "tests/tools/running_command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using testing::Folder;
using ::testing::HasSubstr;
using testing::RunningCommand;
using ::testing::StartsWith;
using testing::wait_until;

class Signals : public ::testing::TestWithParam<int> {};

TEST_P(Signals, EndTheCommandAndLeaveNothingBehind) {
  const Folder folder;
  const std::string plan = folder.write("plan.json", testing::kTinyPlan);
  folder.write("report.json", "earlier");
  const std::string pipe = folder.path("baseline");
  mkfifo(pipe.c_str(), 0600);
  const int writer = open(pipe.c_str(), O_RDWR);
  const std::size_t before = folder.entries();
  // It waits for a baseline that never comes, with its output already begun.
  RunningCommand command({"verify", plan, "--baseline", pipe, "--json", folder.path("report.json")}, "", "");
  ASSERT_TRUE(wait_until([&] { return folder.entries() == before + 1; }));

  command.signal(GetParam());
  const int status = command.wait();

  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), GetParam());
  EXPECT_EQ(folder.entries(), before);
  EXPECT_EQ(folder.read("report.json"), "earlier");
  close(writer);
}

INSTANTIATE_TEST_SUITE_P(Command, Signals, ::testing::Values(SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ),
                         [](const auto& tested) { return std::string(sigabbrev_np(tested.param)); });

TEST(Endings, AWriterThatIsCutOffLeavesNothingBehind) {
  const Folder folder;
  folder.write("plan.json", testing::kTinyPlan);
  const std::size_t before = folder.entries();

  const CommandResult size = testing::shardproof_in(folder.path(""), "check plan.json --json report.json > /dev/null",
                                                    "ulimit -c 0; ulimit -f 1;");

  EXPECT_EQ(size.exit_code, 128 + SIGXFSZ) << size.err;
  EXPECT_EQ(folder.entries(), before);
}

TEST(Endings, AnInterruptedDrawingLeavesNoTemporaryFiles) {
  const Folder folder, temporary;
  const std::string plan = folder.write("plan.json", testing::kTinyPlan);
  // Graphviz that takes its time.
  const std::string dot = folder.write("dot", "#!/bin/sh\ntouch " + folder.path("begun") + "\nexec sleep 60\n");
  chmod(dot.c_str(), 0700);
  RunningCommand command({"graph", plan, "--format", "svg"}, "", "",
                         {"PATH=" + folder.path("") + ":/usr/bin:/bin", "TMPDIR=" + temporary.path("")});
  ASSERT_TRUE(wait_until([&] { return std::filesystem::exists(folder.path("begun")); }));
  ASSERT_EQ(temporary.entries(), 2U);

  command.signal(SIGTERM);
  const int status = command.wait();

  EXPECT_EQ(WTERMSIG(status), SIGTERM);
  EXPECT_EQ(temporary.entries(), 0U);
}

TEST(Endings, ASignalThatWasIgnoredStaysSo) {
  const Folder folder;
  const std::string plan = folder.write("plan.json", testing::kTinyPlan);

  const CommandResult result = testing::shardproof_in(
      folder.path(""), "verify plan.json --baseline pipe & sleep 0.3; kill -HUP $!; cat report.json > pipe; wait $!",
      "mkfifo pipe; " SHARDPROOF_COMMAND " verify plan.json --record report.json > /dev/null; trap '' HUP;");

  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(Endings, ACheckpointThatChangesDuringTheRunIsNamedAndNoVerdictGiven) {
  const Folder folder;
  std::filesystem::copy(SHARDPROOF_SOURCE_DIR "/tests/golden/grouped", folder.path("checkpoint"));
  folder.write("plan.json", R"({"model": "checkpoint/config.json", "parallel": {"tp": 2, "dp": 2, "ep": 4},
                               "workload": {"batch": 4, "sequence": 400}})");
  const std::string weights = folder.read("checkpoint/model.safetensors");
  int caught = 0;
  for (int milliseconds = 0; milliseconds < 400; milliseconds += 20) {
    folder.write("checkpoint/model.safetensors", weights);
    RunningCommand command({"verify", folder.path("plan.json"), "--checkpoint", folder.path("checkpoint")},
                           folder.path("out"), folder.path("err"));
    usleep(static_cast<useconds_t>(milliseconds * 1000));

    if (milliseconds % 40 == 0) {
      std::filesystem::resize_file(folder.path("checkpoint/model.safetensors"), 4096);
    } else {
      folder.write("checkpoint/model.safetensors", std::string(weights.size(), ''));
    }
    const int status = command.wait();

    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) == 0) continue;  // everything had been read
    ++caught;
    EXPECT_EQ(WEXITSTATUS(status), 2) << folder.read("err");
    EXPECT_THAT(folder.read("err"), HasSubstr("model.safetensors: "));
  }
  EXPECT_GT(caught, 0);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/// What the loader says, before there is any code of ours.
bool could_not_be_loaded(const CommandResult& result) {
  return result.exit_code == 127 || result.err.find("shared librar") != std::string::npos;
}

TEST(Endings, WithoutMemoryThereIsAMessageAndNothingHalfWritten) {
  const Folder folder;
  folder.write("plan.json", testing::kTinyPlan);
  int without = 0;
  // With less the kernel has no room for the program's file, and ends it.
  const auto smallest = static_cast<std::int64_t>(std::filesystem::file_size(SHARDPROOF_COMMAND) / 1000);
  for (const std::string arguments :
       {"verify plan.json --threads 8 --json report.json", "check plan.json --json report.json"}) {
    for (auto kilobytes = smallest; kilobytes <= 512'000; kilobytes = kilobytes * 10 / 9) {
      const CommandResult result =
          testing::shardproof_in(folder.path(""), arguments, "ulimit -v " + std::to_string(kilobytes) + "; timeout 60");
      if (could_not_be_loaded(result)) continue;

      // It is seen before that it will not fit, or runs out of memory, or is done.
      const bool written = std::filesystem::exists(folder.path("report.json"));
      EXPECT_EQ(folder.entries(), written ? 2U : 1U);
      if (written) {
        EXPECT_EQ(result.exit_code, 0) << kilobytes << result.err;
        EXPECT_THAT(folder.read("report.json"), ::testing::EndsWith("}\n"));
        std::filesystem::remove(folder.path("report.json"));
      } else {
        ++without;
        EXPECT_THAT(result.exit_code, ::testing::AnyOf(2, 70)) << kilobytes << result.err;
        EXPECT_THAT(result.err, StartsWith("shardproof: ")) << kilobytes;
        if (result.exit_code == 2) {
          EXPECT_THAT(result.err, HasSubstr("are available under ulimit -v; "));
        }
      }
    }
  }
  EXPECT_GT(without, 4);
}

TEST(Endings, MemoryThatIsNotForeseenEndsWithExitCode70) {
  // A graph to be audited takes as much as it is large.
  const Folder folder;
  std::string text = "{\"nodes\": [";
  for (int i = 0; i < 100'000; ++i)
    text += std::string(i == 0 ? "" : ",") + "{\"id\": \"node_" + std::to_string(i) + "\"}";
  folder.write("graph.json", text + "]}");

  const CommandResult result =
      testing::shardproof_in(folder.path(""), "graph --audit graph.json --json report.json", "ulimit -v 30000;");

  EXPECT_EQ(result.exit_code, 70);
  EXPECT_THAT(result.err, StartsWith("shardproof: out of memory"));
  EXPECT_EQ(folder.entries(), 1U);
}
#endif

}  // namespace
}  // namespace shardproof
