// The command in the surroundings that people run it in: none of them changes a result.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/tools/command.h"
#include "tests/tools/place.h"
#include "tests/tools/running_command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RunningCommand;

/// The report without what is of the machine.
nlohmann::json result_of(const CommandResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  nlohmann::json report = nlohmann::json::parse(result.out);
  for (nlohmann::json* part : {&report, &report["algebra"]}) {
    if (part->is_null()) continue;  // of exact, which is the algebra
    part->erase("seconds");
    part->erase("threads");
    part->erase("schedule");
  }
  return report;
}

class Environment : public ::testing::Test {
 protected:
  CommandResult run(const std::string& arguments, const std::string& before = "") const {
    return testing::shardproof_in(folder.path(""), arguments, before);
  }
  nlohmann::json proof(const std::string& before, const std::string& flags = "") const {
    return result_of(run("verify plan.json --json - " + flags, before));
  }

  Folder folder;
  std::string plan = folder.write("plan.json", testing::kTinyPlan);
};

TEST_F(Environment, VariablesOfOtherRuntimesChangeNoResult) {
  const nlohmann::json expected = proof("");
  ASSERT_GT(expected.at("taps").size(), 20U);

  for (const std::string variables :
       {"env -i", "OMP_NUM_THREADS=1 OMP_DYNAMIC=true OMP_PROC_BIND=close", "TBB_VERSION=0 TBB_NUM_THREADS=1",
        "TBB_MALLOC_USE_HUGE_PAGES=1 TBB_ENABLE_SANITIZERS=0", "MKL_NUM_THREADS=3 GOMP_CPU_AFFINITY=0", "LC_ALL=C",
        "LC_ALL=C.UTF-8", "LC_ALL=de_DE.UTF-8 LANG=tr_TR.UTF-8", "LC_ALL=xx_XX LANGUAGE=xx", "TZ=Nowhere",
        "COLUMNS=10 LINES=2", "TERM=", "TERM=dumb", "NO_COLOR=1", "CLICOLOR_FORCE=1 FORCE_COLOR=1", "TMPDIR=/nowhere",
        "HOME=/nowhere", "MALLOC_PERTURB_=85"}) {
    EXPECT_EQ(proof(variables), expected) << variables;
  }
}

TEST_F(Environment, ADecimalCommaChangesNoNumber) {
  // The test makes the locale itself where its sources are there.
  const std::string made = folder.path("de_DE.UTF-8");
  if (std::system(("localedef -i de_DE -f UTF-8 " + made + " 2> /dev/null").c_str()) != 0) {  // NOLINT(cert-env33-c)
    GTEST_SKIP() << "no sources of locales here (Debian: locales)";
  }

  const std::string german = "LOCPATH=" + folder.path("") + " LC_ALL=de_DE.UTF-8";
  EXPECT_EQ(proof(german), proof(""));
  EXPECT_EQ(run("check plan.json", german).out, run("check plan.json").out);
  EXPECT_EQ(run("verify plan.json --max-amplification 1.5", german).exit_code,
            run("verify plan.json --max-amplification 1.5").exit_code);
}

TEST_F(Environment, OneCoreAndManyThreadsGiveTheSameResult) {
  const nlohmann::json expected = proof("");

  EXPECT_EQ(proof("taskset -c $(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')"), expected);
  EXPECT_EQ(proof("nice -n 19"), expected);
  EXPECT_EQ(proof("", "--threads 32"), expected);
}

TEST_F(Environment, FewDescriptorsAreEnough) {
  const std::string checkpoint = SHARDPROOF_SOURCE_DIR "/tests/golden/sharded_one_kv_head";
  folder.write("of_checkpoint.json", "{\"model\": \"" + checkpoint +
                                         "/config.json\", \"parallel\": {\"tp\": 2, \"dp\": 2}, "
                                         "\"workload\": {\"batch\": 4, \"sequence\": 6}}");
  const std::string arguments = "verify of_checkpoint.json --checkpoint " + checkpoint + " --threads 8 --json -";

  EXPECT_EQ(result_of(run(arguments, "ulimit -n 16;")), result_of(run(arguments)));
}

/// A terminal of its own, so wide.
class Terminal {
 public:
  explicit Terminal(unsigned short columns) : master_(posix_openpt(O_RDWR | O_NOCTTY)) {
    grantpt(master_);
    unlockpt(master_);
    const struct winsize size { 24, columns, 0, 0 };
    ioctl(master_, TIOCSWINSZ, &size);
    slave_ = open(path().c_str(), O_RDWR | O_NOCTTY);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  ~Terminal() {
    close(slave_);
    close(master_);
  }

  std::string path() const { return ptsname(master_); }

  /// What the command of these words shows on it. Standard error goes there too, where asked for.
  std::string shown(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                    bool errors) {
    RunningCommand command(arguments, path(), errors ? path() : "", environment);
    fcntl(master_, F_SETFL, O_NONBLOCK);
    std::string text;
    const auto read_what_is_there = [&] {
      char buffer[4096];
      for (ssize_t count = 0; (count = read(master_, buffer, sizeof buffer)) > 0;) {
        text.append(buffer, static_cast<std::size_t>(count));
      }
    };
    int status = -1;
    const bool ended = testing::wait_until([&] {
      read_what_is_there();
      return command.ended(status);
    });
    EXPECT_TRUE(ended);
    read_what_is_there();
    return text;
  }

 private:
  int master_;
  int slave_ = -1;
};

TEST_F(Environment, ColoursAreForTerminalsThatKnowThem) {
  Terminal terminal(80);
  const auto shown = [&](const std::vector<std::string>& environment) {
    return terminal.shown({"verify", plan}, environment, false);
  };

  EXPECT_THAT(shown({"TERM=xterm", "NO_COLOR="}), HasSubstr("\x1b[32mpass\x1b[0m"));
  for (const std::vector<std::string>& plain : std::vector<std::vector<std::string>>{
           {"TERM=xterm", "NO_COLOR=1"}, {"TERM=dumb", "NO_COLOR="}, {"TERM=", "NO_COLOR="}}) {
    const std::string text = shown(plain);
    EXPECT_THAT(text, HasSubstr("algebra   pass")) << plain[0];
    EXPECT_THAT(text, Not(HasSubstr("\x1b"))) << plain[0];
  }
}

TEST_F(Environment, ProgressIsForTerminalsThatCanRewriteALine) {
  Terminal terminal(80);

  EXPECT_THAT(terminal.shown({"verify", plan}, {"TERM=xterm", "NO_COLOR=1"}, true), HasSubstr("\r\x1b[K"));
  EXPECT_THAT(terminal.shown({"verify", plan}, {"TERM=dumb"}, true), Not(HasSubstr("\x1b")));
  EXPECT_THAT(terminal.shown({"mutate", plan, "--kind", "attention_reduction_dropped"}, {"TERM=dumb"}, true),
              Not(HasSubstr("\x1b")));
}

TEST_F(Environment, ANarrowTerminalShowsTheSameText) {
  Terminal narrow(20), wide(200);
  const std::vector<std::string> arguments{"check", plan};

  EXPECT_EQ(narrow.shown(arguments, {"TERM=xterm"}, true), wide.shown(arguments, {"TERM=xterm"}, true));
}

TEST_F(Environment, NamesFromAFileCannotSteerTheTerminal) {
  std::string text = testing::kTinyPlan;
  text.insert(1, R"("name": "a\u001b[2J\u009b2J\nalgebra   pass",
      "claims": [{"document": "d\u001b[2J", "text": "t\u001b[2J\r", "quantity": "gpus", "relation": "=", "stated": 4}],)");
  folder.write("hostile.json", text);
  folder.write("wrong.json", R"({"a\u001b[2J\n": 1, "model": "m\u001b[2J", "parallel": {"tp": "\u001b[2J"}})");
  std::filesystem::copy_file(folder.path("wrong.json"), folder.path("w\x1b[2J.json"));

  for (const std::string arguments :
       {"verify hostile.json", "check hostile.json", "check wrong.json",
        "mutate hostile.json --kind attention_reduction_dropped", "check 'w\x1b[2J.json'", "verify '--x\x1b[2J'",
        "verify --seed '\x1b[2J'", "verify plan.json --baseline 'none\x1b[2J'", "verify plan.json --json '/\x1b[2J/x'",
        "graph hostile.json --audit wrong.json"}) {
    const CommandResult result = run(arguments);
    const std::string shown = result.out + result.err;

    EXPECT_THAT(shown, Not(HasSubstr("\x1b"))) << arguments;
    EXPECT_THAT(shown, Not(HasSubstr("\xC2\x9B"))) << arguments;
    EXPECT_THAT(shown, Not(HasSubstr("\r"))) << arguments;
    EXPECT_THAT(shown, Not(HasSubstr("\nalgebra   pass:"))) << arguments;
  }
}

class Determinism : public Environment, public ::testing::WithParamInterface<std::string> {};

TEST_P(Determinism, HoldsOverThreadsAndSchedules) {
  const std::string format = "--format " + GetParam();
  const nlohmann::json expected = proof("", format + " --threads 1");

  for (const std::string how :
       {"--threads 1", "--threads 2", "--threads 3", "--threads 5", "--threads 8", "--threads 16", "--schedule 0",
        "--schedule 1", "--schedule 2", "--schedule 3", "--schedule 4", "--schedule 18446744073709551615"}) {
    EXPECT_EQ(proof("", format + " " + how), expected) << how;
  }
}

INSTANTIATE_TEST_SUITE_P(Command, Determinism, ::testing::Values("exact", "fp64", "fp32", "bf16", "fp16"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace shardproof
