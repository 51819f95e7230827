#include "emu/run/slot_board.h"

#include <gtest/gtest.h>

namespace shardproof {
namespace {

using Slots = std::vector<std::int64_t>;

TEST(SlotBoard, GivesWhatEveryRankOfAGroupSentInTheOrderOfTheSenders) {
  SlotBoard board({.dp = 2, .ep = 2});

  board.post(0, {.layer = 1, .microbatch = 0}, {5, 0, 2}, {2, 1});
  board.post(1, {.layer = 1, .microbatch = 0}, {9, 7, 8}, {1, 2});

  EXPECT_EQ(board.arriving(0, {.layer = 1, .microbatch = 0}), Slots({5, 0, 9}));
  EXPECT_EQ(board.arriving(1, {.layer = 1, .microbatch = 0}), Slots({2, 7, 8}));
}

TEST(SlotBoard, JoinsThoseOfEveryRankOverEtp) {
  SlotBoard board({.dp = 2, .etp = 2});

  board.post(0, {}, {3, 1}, {2});
  board.post(1, {}, {6}, {1});

  for (const int rank : {0, 1}) EXPECT_EQ(board.arriving_over_etp(rank, {}), Slots({3, 1, 6}));
}

TEST(SlotBoard, HasNoneOfAnotherLayerOrMicrobatchOrOfARankThatPostedNothing) {
  SlotBoard board({.dp = 2, .ep = 2});

  board.post(0, {.layer = 1, .microbatch = 0}, {4}, {1, 0});

  EXPECT_EQ(board.arriving(0, {.layer = 1, .microbatch = 0}), Slots({4}));
  EXPECT_EQ(board.arriving(0, {.layer = 0, .microbatch = 0}), Slots());
  EXPECT_EQ(board.arriving(0, {.layer = 1, .microbatch = 1}), Slots());
}

}  // namespace
}  // namespace shardproof
