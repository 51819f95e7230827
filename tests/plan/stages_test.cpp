#include "emu/plan/stages.h"

#include <gtest/gtest.h>

namespace shardproof {
namespace {

class StagesOf : public ::testing::TestWithParam<std::pair<int, int>> {};

TEST_P(StagesOf, GivesEveryLayerToTheStageThatHoldsIt) {
  const auto [layers, pp] = GetParam();
  const Stages stages({.layers = LayerList(layers, {})}, {.pp = pp});

  int next = 0;
  for (int stage = 0; stage < pp; ++stage) {
    EXPECT_EQ(stages.layers_of(stage).begin, next);
    for (; next < stages.layers_of(stage).end(); ++next) EXPECT_EQ(stages.stage_of(next), stage) << "layer " << next;
  }
  EXPECT_EQ(next, layers);
}

INSTANTIATE_TEST_SUITE_P(Layers, StagesOf,
                         ::testing::Values(std::pair{1, 1}, std::pair{7, 1}, std::pair{8, 4}, std::pair{10, 4},
                                           std::pair{61, 16}, std::pair{5, 5}));

TEST(Stages, HoldAsManyLayersAsThePlanSays) {
  const Stages stages({.layers = LayerList(10, {})}, {.pp = 4, .layers_per_stage = {1, 4, 4, 1}});

  EXPECT_EQ(stages.layers_of(0), (Range{0, 1}));
  EXPECT_EQ(stages.layers_of(1), (Range{1, 4}));
  EXPECT_EQ(stages.layers_of(3), (Range{9, 1}));
  EXPECT_EQ(stages.stage_of(4), 1);
  EXPECT_EQ(stages.stage_of(9), 3);
}

TEST(Stages, PlaceWhatIsOutsideTheLayersOnTheFirstAndTheLast) {
  const Stages stages({.layers = LayerList(10, {})}, {.pp = 4});

  EXPECT_EQ(stages.stage_of(-1), 0);
  EXPECT_EQ(stages.stage_of(10), 3);
}

}  // namespace
}  // namespace shardproof
