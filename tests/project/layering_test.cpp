#include "tests/project/layering.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>

namespace shardproof::project {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

/// As CONTRIBUTING.md draws them.
const std::vector<Room>& drawn_rooms() {
  static const std::vector<Room> kRooms = rooms_in(read_file(SHARDPROOF_SOURCE_DIR "/CONTRIBUTING.md"));
  return kRooms;
}

std::vector<std::string> violations_in(const std::vector<SourceFile>& files) {
  std::vector<std::string> found;
  for (const SourceFile& file : files) {
    for (const Violation& violation : check_layering(file, drawn_rooms())) found.push_back(to_string(violation));
  }
  return found;
}

TEST(Layering, EveryIncludeFollowsADrawnArrow) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);

  const std::vector<std::string> violations = violations_in(files);

  EXPECT_THAT(violations, IsEmpty());
}

TEST(Layering, NoFilesIncludeOneAnother) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);

  const std::vector<std::string> cycles = include_cycles(files);

  EXPECT_THAT(cycles, IsEmpty());
}

TEST(Layering, EverySourceLiesInARoomThatIsDrawn) {
  std::vector<std::string> outside;

  for (const SourceFile& file : read_tree(SHARDPROOF_SOURCE_DIR)) {
    const bool drawn =
        std::ranges::any_of(drawn_rooms(), [&](const Room& room) { return file.path.starts_with(room.path); });
    if (is_cpp(file.path) && !file.path.starts_with("tests/") && !drawn) outside.push_back(file.path);
  }

  EXPECT_THAT(outside, IsEmpty());
}

TEST(Layering, EveryRoomThatIsDrawnHasSources) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);

  for (const Room& room : drawn_rooms()) {
    const auto in_room = std::ranges::count_if(
        files, [&](const SourceFile& file) { return is_cpp(file.path) && file.path.starts_with(room.path); });

    EXPECT_GE(in_room, room.path.ends_with('/') ? 3 : 1) << room.path;
  }
}

TEST(Layering, EveryDrawnArrowLeadsUpwards) {
  EXPECT_THAT(wrong_arrows(drawn_rooms()), IsEmpty());
}

struct Planted {
  std::string name;
  std::string file;
  std::string line;
};

std::ostream& operator<<(std::ostream& out, const Planted& planted) {
  return out << planted.line << " in " << planted.file;
}

class PlantedViolation : public ::testing::TestWithParam<Planted> {};

TEST_P(PlantedViolation, IsFoundOnItsLine) {
  const SourceFile file{GetParam().file, "// A comment.\n" + GetParam().line + "\n"};

  const std::vector<Violation> violations = check_layering(file, drawn_rooms());

  ASSERT_THAT(violations, SizeIs(1));
  EXPECT_EQ(violations.front().file, GetParam().file);
  EXPECT_EQ(violations.front().line, 2);
}

std::string name_of(const ::testing::TestParamInfo<Planted>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(
    Arrows, PlantedViolation,
    ::testing::Values(Planted{"OpsToCollectives", "ops/a.cpp", "#include \"collectives/rank.h\""},
                      Planted{"CollectivesToOps", "collectives/a.h", "#include \"ops/matrix.h\""},
                      Planted{"OpsToEmu", "ops/a.h", "#include \"emu/plan/plan.h\""},
                      Planted{"PlanToOps", "emu/plan/a.cpp", "#include \"ops/format.h\""},
                      Planted{"PlanToRun", "emu/plan/a.cpp", "#include \"emu/run/cluster.h\""},
                      Planted{"RunToVerify", "emu/run/a.cpp", "#include \"emu/reference/reference.h\""},
                      Planted{"ReferenceToOps", "emu/reference/reference.cpp", "#include \"ops/matrix.h\""},
                      Planted{"ReferenceToRun", "emu/reference/math.h", "#include \"emu/weights/store.h\""},
                      Planted{"ReferenceToVerifier", "emu/reference/reference.h", "#include \"emu/judge/verify.h\""},
                      Planted{"PaperToJudge", "emu/paper/a.cpp", "#include \"emu/judge/verify.h\""},
                      Planted{"TimelineToJudge", "emu/timeline/a.cpp", "#include \"emu/judge/verify.h\""},
                      Planted{"DiagnoseToMutate", "emu/diagnose/a.cpp", "#include \"emu/mutate/mutation.h\""},
                      Planted{"JudgeToDiagnose", "emu/judge/judge.cpp", "#include \"emu/diagnose/diagnose.h\""},
                      Planted{"JudgeToMutate", "emu/judge/verify.cpp", "#include \"emu/mutate/mutation.h\""},
                      Planted{"ModelToPlan", "emu/model/a.h", "#include \"emu/plan/plan.h\""},
                      Planted{"WeightsToPlan", "emu/weights/a.h", "#include \"emu/plan/plan.h\""},
                      Planted{"ReferenceToTensors", "emu/reference/a.cpp", "#include \"emu/model/tensors.h\""},
                      Planted{"LayerToTools", "emu/judge/a.cpp", "#include \"tools/main.h\""},
                      Planted{"LayerToTests", "bench/a.cpp", "#include \"tests/ops/oracle.h\""},
                      Planted{"InAngles", "ops/a.cpp", "#include <collectives/rank.h>"},
                      Planted{"Indented", "ops/a.cpp", "  #  include   \"collectives/rank.h\""},
                      Planted{"RelativePath", "ops/a.cpp", "#include \"../ops/matrix.h\""},
                      Planted{"SiblingPath", "ops/a.cpp", "#include \"matrix.h\""}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Libraries, PlantedViolation,
    ::testing::Values(Planted{"EigenInHeader", "ops/a.h", "#include <Eigen/Core>"},
                      Planted{"EigenInEmu", "emu/run/a.cpp", "#include <Eigen/Core>"},
                      Planted{"TbbInCommunicator", "collectives/world.cpp", "#include <tbb/task_group.h>"},
                      Planted{"TbbInHeader", "collectives/tbb_executor.h", "#include <oneapi/tbb/task_arena.h>"},
                      Planted{"TbbInTransformer", "emu/run/transformer.cpp", "#include <tbb/parallel_for.h>"},
                      Planted{"TbbInReference", "emu/reference/reference.cpp", "#include <tbb/parallel_for.h>"},
                      Planted{"JsonInHeader", "emu/plan/load.h", "#include <nlohmann/json.hpp>"},
                      Planted{"JsonInTransformer", "emu/run/transformer.cpp", "#include <nlohmann/json.hpp>"},
                      Planted{"CommandLineInEmu", "emu/run/a.cpp", "#include <CLI/CLI.hpp>"},
                      Planted{"BenchmarkInOps", "ops/a.cpp", "#include <benchmark/benchmark.h>"},
                      Planted{"UnknownLibrary", "emu/run/a.cpp", "#include <boost/any.hpp>"}),
    name_of);

INSTANTIATE_TEST_SUITE_P(Output, PlantedViolation,
                         ::testing::Values(Planted{"Stream", "ops/a.cpp", "std::cout << value;"},
                                           Planted{"Print", "emu/run/a.cpp", "  fmt::print(\"{}\", value);"},
                                           Planted{"Printf", "collectives/a.cpp", "std::printf(\"x\");"},
                                           Planted{"StandardError", "emu/plan/a.cpp", "report(stderr);"},
                                           Planted{"Abort", "collectives/a.cpp", "std::abort();"},
                                           Planted{"Exit", "emu/run/a.cpp", "exit(1);"}),
                         name_of);

class Permitted : public ::testing::TestWithParam<Planted> {};

TEST_P(Permitted, IsNotReported) {
  const SourceFile file{GetParam().file, GetParam().line + "\n"};

  const std::vector<Violation> violations = check_layering(file, drawn_rooms());

  EXPECT_THAT(violations, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Layering, Permitted,
    ::testing::Values(Planted{"RunToOps", "emu/run/a.h", "#include \"ops/matrix.h\""},
                      Planted{"PaperToTrace", "emu/paper/a.cpp", "#include \"emu/run/trace.h\""},
                      Planted{"ReferenceToTheModel", "emu/reference/reference.h", "#include \"emu/model/config.h\""},
                      Planted{"VerifyToDiagnose", "emu/judge/verify.cpp", "#include \"emu/diagnose/diagnose.h\""},
                      Planted{"EigenInOps", "ops/linear.cpp", "#include <Eigen/Core>"},
                      Planted{"TbbInItsExecutor", "collectives/tbb_executor.cpp", "#include <tbb/task_group.h>"},
                      Planted{"TbbUnderOps", "ops/threads.cpp", "#include <tbb/parallel_for.h>"},
                      Planted{"JsonInLoader", "emu/model/families/load.cpp", "#include <nlohmann/json.hpp>"},
                      Planted{"JsonInReport", "emu/report/check_json.cpp", "#include <nlohmann/json.hpp>"},
                      Planted{"CommandLineInTools", "tools/main.cpp", "#include <CLI/CLI.hpp>"},
                      Planted{"OutputInTools", "tools/main.cpp", "fmt::print(\"{}\", value);"},
                      Planted{"Standard", "ops/a.cpp", "#include <vector>"},
                      Planted{"InAComment", "ops/a.cpp", "// #include \"collectives/rank.h\" and std::cout"},
                      Planted{"InABlockComment", "ops/a.cpp", "/*\n#include \"collectives/rank.h\"\n*/"},
                      Planted{"InALiteral", "ops/a.cpp", "auto s = \"std::cout << 1\";"},
                      Planted{"FormatIntoBuffer", "ops/a.cpp", "std::snprintf(buffer, n, \"x\");"}),
    name_of);

TEST(IncludeCycles, ArePrintedAsAPath) {
  const std::vector<SourceFile> files{{"ops/a.h", "#include \"ops/b.h\"\n"},
                                      {"ops/b.h", "#include \"ops/c.h\"\n"},
                                      {"ops/c.h", "#include \"ops/b.h\"\n"}};

  const std::vector<std::string> cycles = include_cycles(files);

  EXPECT_THAT(cycles, ElementsAre("ops/b.h -> ops/c.h -> ops/b.h"));
}

TEST(IncludeCycles, AreNotSeenInADiamond) {
  const std::vector<SourceFile> files{{"ops/a.h", "#include \"ops/b.h\"\n#include \"ops/c.h\"\n"},
                                      {"ops/b.h", "#include \"ops/d.h\"\n"},
                                      {"ops/c.h", "#include \"ops/d.h\"\n"},
                                      {"ops/d.h", "#include <vector>\n"}};

  const std::vector<std::string> cycles = include_cycles(files);

  EXPECT_THAT(cycles, IsEmpty());
}

}  // namespace
}  // namespace shardproof::project
