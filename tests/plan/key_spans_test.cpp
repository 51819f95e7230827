#include "emu/plan/key_spans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "emu/plan/token_map.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;

TEST(KeySpans, SeeWhatTheHeadersExampleSays) {
  const TokenMap map({.cp = 2}, {.lengths = {8}});
  const auto first = map.pieces({.cp = 0}, 0), second = map.pieces({.cp = 1}, 0);

  EXPECT_THAT(key_spans(first, first), ElementsAre(KeySpan{4, 0, 1, true}));
  EXPECT_THAT(key_spans(second, first), ElementsAre(KeySpan{4, 0, 2, false}));
  EXPECT_THAT(key_spans(first, second), ElementsAre(KeySpan{2, 0, 0, false}, KeySpan{2, 0, 4, false}));
}

TEST(KeySpans, KeepSequencesApart) {
  const TokenMap map({.cp = 2}, {.lengths = {1, 5, 4}});

  // Pieces of 1, 0, 0, 0; of 2, 1, 1, 1; of 1, 1, 1, 1.
  const auto spans = key_spans(map.pieces({.cp = 1}, 0), map.pieces({.cp = 0}, 0));

  EXPECT_THAT(spans, ElementsAre(KeySpan{2, 1, 2, false}, KeySpan{2, 4, 1, false}));
}

TEST(KeySpans, AddUpToTheCausalMaskOverARing) {
  for (const int cp : {1, 2, 3, 5}) {
    const std::vector<std::int64_t> lengths{1, 2, 7, 30, 31, 9};
    const TokenMap map({.cp = cp}, {.lengths = lengths});
    double expected = 0, pairs = 0;
    for (const std::int64_t length : lengths) expected += static_cast<double>(length * (length + 1) / 2);

    for (int mine = 0; mine < cp; ++mine) {
      double of_rank = 0;
      for (int other = 0; other < cp; ++other) {
        of_rank += pairs_between(map.pieces({.cp = mine}, 0), map.pieces({.cp = other}, 0));
      }
      EXPECT_EQ(of_rank, map.pairs({.cp = mine}, 0)) << "cp " << cp << " rank " << mine;
      pairs += of_rank;
    }

    EXPECT_EQ(pairs, expected) << "cp " << cp;
  }
}

}  // namespace
}  // namespace shardproof
