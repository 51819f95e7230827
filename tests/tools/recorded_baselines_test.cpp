// The baselines in the repository, held to this build.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tools/command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::shardproof;

std::string source(const std::string& path) {
  return std::string(SHARDPROOF_SOURCE_DIR) + "/" + path;
}

class RecordedBaselines : public ::testing::TestWithParam<std::string> {};

TEST_P(RecordedBaselines, HoldOnThisBuild) {
  const CommandResult result = shardproof("verify " + source("plans/" + GetParam() + ".json") + " --baseline " +
                                          source("tests/baselines/" + GetParam() + ".json"));

  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_THAT(result.out, HasSubstr("every tap is as it was recorded"));
}

INSTANTIATE_TEST_SUITE_P(VerifyCommand, RecordedBaselines,
                         ::testing::Values("tp4_ep4_pp4", "tp2_ep4_pp2_dp2", "ep64_tp2", "ep16_tp2_pp4",
                                           "ep4_tp2_pp2_sp", "cp4_tp2_ep4", "tp8_ep8_all_reduce"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace shardproof
