#include "emu/plan/cache_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace shardproof {
namespace {

using ::testing::ElementsAre;

std::vector<std::int64_t> kept(const CacheShare& share, std::int64_t tokens) {
  std::vector<std::int64_t> all;
  for (std::int64_t token = 0; token < tokens; ++token) {
    if (share.owns(token)) all.push_back(token);
  }
  return all;
}

TEST(CacheShare, KeepsWhatTheHeadersExampleSays) {
  EXPECT_THAT(kept({2, 2, 0}, 10), ElementsAre(0, 1, 4, 5, 8, 9));
  EXPECT_THAT(kept({2, 2, 1}, 10), ElementsAre(2, 3, 6, 7));
}

TEST(CacheShare, GivesEveryTokenOnePlaceOnOneRank) {
  for (const int ranks : {1, 2, 3, 5}) {
    for (const std::int64_t interleave : {1, 2, 7}) {
      for (std::int64_t token = 0; token < 60; ++token) {
        int owners = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const CacheShare share{ranks, interleave, rank};
          owners += share.owns(token) ? 1 : 0;
          EXPECT_EQ(share.count_of(token), std::ssize(kept(share, token)));
          if (!share.owns(token)) continue;
          EXPECT_EQ(share.place_of(token), share.count_of(token));
          EXPECT_EQ(share.token_at(share.place_of(token)), token);
        }
        EXPECT_EQ(owners, 1) << token;
      }
    }
  }
}

TEST(CacheShare, CountsThePairsOfTheCausalMask) {
  for (const int ranks : {1, 2, 3}) {
    for (const std::int64_t interleave : {1, 3}) {
      for (const std::int64_t tokens : {0, 1, 4, 17, 30}) {
        double all = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const CacheShare share{ranks, interleave, rank};
          double pairs = 0;
          for (std::int64_t query = 0; query < tokens; ++query) pairs += static_cast<double>(share.count_of(query + 1));

          EXPECT_EQ(share.pairs_of(tokens), pairs) << ranks << " " << interleave << " " << rank << " " << tokens;
          all += pairs;
        }
        EXPECT_EQ(all, static_cast<double>(tokens * (tokens + 1) / 2));
      }
    }
  }
}

}  // namespace
}  // namespace shardproof
