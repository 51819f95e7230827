#include "emu/plan/token_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

Workload workload_of(std::vector<std::int64_t> lengths, std::int64_t microbatches) {
  return {.lengths = std::move(lengths), .microbatches = microbatches};
}

TEST(TokenMap, SplitsSequencesOverReplicasAndMicrobatches) {
  const TokenMap map({.dp = 2}, workload_of({3, 1, 2, 4, 5}, 2));

  const RankTokens first = map.rank_tokens({.dp = 0}, 0);

  EXPECT_EQ(map.tokens(), 15);
  EXPECT_THAT(first.rows.runs, ElementsAre(Range{0, 4}));
  EXPECT_THAT(first.offsets, ElementsAre(0, 3, 4));
  EXPECT_THAT(first.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(map.rows({.dp = 0}, 1).runs, ElementsAre(Range{4, 2}));
  EXPECT_THAT(map.rows({.dp = 1}, 0).runs, ElementsAre(Range{6, 4}));
  EXPECT_EQ(map.sequences(1), (Range{3, 2}));
  EXPECT_THAT(map.chunks(0, 1), ElementsAre(Chunk{2, 0, 2}));
}

TEST(TokenMap, LeavesReplicasWithoutASequenceEmpty) {
  const TokenMap map({.tp = 2, .dp = 4, .sp = true}, workload_of({3}, 1));

  const RankTokens empty = map.rank_tokens({.tp = 1, .dp = 3}, 0);

  EXPECT_THAT(empty.rows.runs, ElementsAre(Range{3, 0}));
  EXPECT_EQ(empty.own.count, 0);
  EXPECT_EQ(empty.stream.count, 0);
  EXPECT_THAT(empty.own_counts, ElementsAre(0, 0));
  EXPECT_THAT(empty.offsets, ElementsAre(0));
  EXPECT_THAT(empty.positions, IsEmpty());
}

TEST(TokenMap, GivesAWorldOfOneEverything) {
  const TokenMap map({}, workload_of({2, 3}, 1));

  const RankTokens all = map.rank_tokens({}, 0);

  EXPECT_THAT(all.rows.runs, ElementsAre(Range{0, 5}));
  EXPECT_EQ(all.own, (Range{0, 5}));
  EXPECT_EQ(all.stream, (Range{0, 5}));
  EXPECT_THAT(all.own_counts, ElementsAre(5));
}

TEST(TokenMap, ShardsTheResidualStreamUnderSequenceParallelismOnly) {
  const Workload workload = workload_of({5}, 1);
  const Coordinates last{.tp = 1};

  const RankTokens whole = TokenMap({.tp = 2}, workload).rank_tokens(last, 0);
  const RankTokens sharded = TokenMap({.tp = 2, .sp = true}, workload).rank_tokens(last, 0);

  EXPECT_EQ(whole.own, (Range{3, 2}));
  EXPECT_EQ(whole.stream, (Range{0, 5}));
  EXPECT_EQ(sharded.own, (Range{3, 2}));
  EXPECT_EQ(sharded.stream, (Range{3, 2}));
  EXPECT_THAT(sharded.own_counts, ElementsAre(3, 2));
}

TEST(TokenMap, DealsThePiecesOfEachSequenceInZigZag) {
  const TokenMap map({.cp = 2}, workload_of({8, 4}, 1));

  const RankTokens first = map.rank_tokens({.cp = 0}, 0);
  const RankTokens second = map.rank_tokens({.cp = 1}, 0);

  // The last piece of a sequence and the first of the next lie side by side.
  EXPECT_THAT(first.rows.runs, ElementsAre(Range{0, 2}, Range{6, 3}, Range{11, 1}));
  EXPECT_THAT(first.pieces, ElementsAre(Chunk{0, 0, 2}, Chunk{0, 6, 2}, Chunk{1, 0, 1}, Chunk{1, 3, 1}));
  EXPECT_THAT(first.offsets, ElementsAre(0, 4, 6));
  EXPECT_THAT(first.positions, ElementsAre(0, 1, 6, 7, 0, 3));
  EXPECT_THAT(second.rows.runs, ElementsAre(Range{2, 4}, Range{9, 2}));
  EXPECT_THAT(second.positions, ElementsAre(2, 3, 4, 5, 1, 2));
  EXPECT_THAT(second.shares, ElementsAre(first.pieces, second.pieces));
  EXPECT_THAT(second.chunks, ElementsAre(Chunk{0, 0, 8}, Chunk{1, 0, 4}));
}

TEST(TokenMap, LeavesPiecesEmptyOfASequenceShorterThanTheyAreMany) {
  const TokenMap map({.tp = 2, .cp = 3}, workload_of({2, 4}, 1));

  const RankTokens first = map.rank_tokens({.cp = 0}, 0);
  const RankTokens second = map.rank_tokens({.tp = 1, .cp = 1}, 0);
  const RankTokens third = map.rank_tokens({.cp = 2}, 0);

  // Pieces 1, 1, 0, 0, 0, 0 and 1, 1, 1, 1, 0, 0.
  EXPECT_THAT(first.rows.runs, ElementsAre(Range{0, 1}, Range{2, 1}));
  EXPECT_THAT(second.rows.runs, ElementsAre(Range{1, 1}, Range{3, 1}));
  EXPECT_THAT(second.offsets, ElementsAre(0, 1, 2));
  EXPECT_THAT(second.own_counts, ElementsAre(1, 1));
  EXPECT_THAT(third.rows.runs, ElementsAre(Range{4, 2}));
  EXPECT_THAT(third.offsets, ElementsAre(0, 0, 2));
  EXPECT_THAT(map.rows({.cp = 2}, 0).runs, ElementsAre(Range{4, 2}));
}

TEST(TokenMap, BalancesTheMaskedPairsOverContextParallelRanks) {
  const TokenMap map({.cp = 4}, workload_of({64}, 1));

  double pairs = 0;
  for (int cp = 0; cp < 4; ++cp) {
    EXPECT_EQ(map.pairs({.cp = cp}, 0), 64 * 65 / 2 / 4);
    pairs += map.rank_tokens({.cp = cp}, 0).pairs_within(16);
  }

  EXPECT_EQ(pairs, 64 * 16 - 16 * 15 / 2);
}

TEST(TokenMap, SplitsTheSequencesOfADecodeStep) {
  TokenMap map({.cp = 2}, workload_of({1, 1, 1}, 1));

  map.set_past(std::vector<std::int64_t>{10, 20, 30});

  EXPECT_THAT(map.rank_shapes({.cp = 0}, 0).pieces, ElementsAre(Chunk{0, 10, 1}, Chunk{1, 20, 1}));
  EXPECT_THAT(map.rows({.cp = 1}, 0).runs, ElementsAre(Range{2, 1}));
  EXPECT_EQ(map.pairs({.cp = 0}, 0), 11 + 21);
  EXPECT_EQ(map.pairs({.cp = 1}, 0), 31);
}

/// Random plans, and the same plans over context-parallel shares.
class TokenMapOfRandomPlans : public ::testing::TestWithParam<int> {
 protected:
  template <class Body>
  void for_each_plan(const Body& body) {
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
      Plan plan = testing::random_plan(testing::property_seed() + seed);
      plan.parallel.cp = GetParam();
      plan.parallel.cp_comm = CpComm::p2p;
      plan.parallel.cp_a2a = 1;
      SCOPED_TRACE(testing::describe(plan));
      body(plan, Mesh(plan.parallel), TokenMap(plan.parallel, plan.workload));
    }
  }
};

TEST_P(TokenMapOfRandomPlans, OwnsEveryRowOnceInEachStage) {
  for_each_plan([](const Plan& plan, const Mesh& mesh, const TokenMap& map) {
    // stage -> owners of each row
    std::vector<std::vector<int>> owners(static_cast<std::size_t>(plan.parallel.pp),
                                         std::vector<int>(static_cast<std::size_t>(map.tokens()), 0));
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const Coordinates at = mesh.coordinates(rank);
      for (std::int64_t m = 0; m < map.microbatches(); ++m) {
        const TokenRows own = map.own(at, m);
        for (std::int64_t place = 0; place < own.count(); ++place) {
          ++owners[static_cast<std::size_t>(at.pp)][static_cast<std::size_t>(own[place])];
        }
      }
    }

    EXPECT_EQ(map.tokens(), plan.workload.tokens());
    // Or by every rank of a tensor-parallel group, where each routes all of its tokens.
    const int times = plan.parallel.routes_alike() ? plan.parallel.tp : 1;
    for (const std::vector<int>& of_stage : owners) EXPECT_THAT(of_stage, Each(times));
  });
}

TEST_P(TokenMapOfRandomPlans, FindsTheHomeOfEveryRow) {
  for_each_plan([](const Plan& plan, const Mesh& mesh, const TokenMap& map) {
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const Coordinates at = mesh.coordinates(rank);
      for (std::int64_t m = 0; m < map.microbatches(); ++m) {
        const TokenRows own = map.own(at, m);
        for (std::int64_t place = 0; place < own.count(); ++place) {
          const RowHome home = map.home(own[place]);

          EXPECT_EQ(home.microbatch, m);
          const int tp = plan.parallel.routes_alike() ? 0 : at.tp;  // the first of those that route it
          EXPECT_EQ(home.at, (Coordinates{.tp = tp, .cp = at.cp, .dp = at.dp}));
        }
      }
    }
  });
}

TEST_P(TokenMapOfRandomPlans, PartitionsTheRowsOfATensorParallelGroup) {
  for_each_plan([](const Plan& plan, const Mesh& mesh, const TokenMap& map) {
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const Coordinates at = mesh.coordinates(rank);
      for (std::int64_t m = 0; m < map.microbatches(); ++m) {
        const RankTokens tokens = map.rank_tokens(at, m);

        std::int64_t before = 0;
        for (int tp = 0; tp < at.tp; ++tp) before += tokens.own_counts[static_cast<std::size_t>(tp)];
        if (plan.parallel.routes_alike()) before = 0;  // each has all of them
        EXPECT_EQ(tokens.own, (Range{before, tokens.own_counts[static_cast<std::size_t>(at.tp)]}));
        EXPECT_EQ(std::ssize(tokens.own_counts), plan.parallel.tp);
        EXPECT_EQ(tokens.rows.part(tokens.own), map.own(at, m));
        EXPECT_EQ(tokens.rows.part(tokens.stream), map.stream(at, m));
        EXPECT_EQ(tokens.rows, map.rows(at, m));
      }
    }
  });
}

TEST_P(TokenMapOfRandomPlans, CountsPositionsFromTheBeginningOfEachSequence) {
  for_each_plan([](const Plan& plan, const Mesh& mesh, const TokenMap& map) {
    std::vector<std::int64_t> expected;
    for (const std::int64_t length : plan.workload.lengths) {
      for (std::int64_t p = 0; p < length; ++p) expected.push_back(p);
    }
    for (int rank = 0; rank < mesh.world(); ++rank) {
      for (std::int64_t m = 0; m < map.microbatches(); ++m) {
        const RankTokens tokens = map.rank_tokens(mesh.coordinates(rank), m);

        ASSERT_EQ(std::ssize(tokens.positions), tokens.rows.count());
        EXPECT_EQ(tokens.offsets.back(), tokens.rows.count());
        for (std::int64_t place = 0; place < tokens.rows.count(); ++place) {
          const std::int64_t row = tokens.rows[place];
          EXPECT_EQ(tokens.positions[static_cast<std::size_t>(place)], expected[static_cast<std::size_t>(row)]);
          EXPECT_EQ(map.position(row), expected[static_cast<std::size_t>(row)]);
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cp, TokenMapOfRandomPlans, ::testing::Values(1, 2, 5));

TEST(TokenMap, TellsWhichRowsAreRunInPlaceOfOthers) {
  Workload workload;
  workload.serving = Serving{.requests = {{.prompt = 7, .output = 3, .prefix = 6},
                                          {.prompt = 9, .output = 1, .arrival = 1, .prefix = 8},
                                          {.prompt = 9, .output = 1, .arrival = 1, .prefix = 8}},
                             .kv_block_size = 4,
                             .prefix_sharing = true,
                             .steps = {}};
  set_lengths(workload);
  const TokenMap tokens({}, workload);  // of 9, 9 and 9 tokens; the last shares a block of each of the others

  EXPECT_EQ(tokens.run_as(8), 8);
  EXPECT_EQ(tokens.run_as(9), 0);
  EXPECT_EQ(tokens.run_as(13), 13);
  EXPECT_EQ(tokens.run_as(18), 0);
  EXPECT_EQ(tokens.run_as(22), 13);
  EXPECT_EQ(tokens.run_as(26), 26);
  EXPECT_EQ(tokens.home(9).microbatch, 0);
  EXPECT_EQ(tokens.home(13).microbatch, 1);
  std::int64_t shared = 0;
  for (const TokenMap::SharedRows& rows : tokens.shared_rows()) shared += rows.rows.count;
  EXPECT_EQ(shared, 4 + 8);
}

TEST(TokenMap, PadsWhereAReplicaHasNoWork) {
  Workload workload{.lengths = {3}, .idle = Idle::pad};
  const TokenMap padded({.tp = 2, .dp = 2}, workload);
  workload.idle = Idle::zero;
  const TokenMap empty({.tp = 2, .dp = 2}, workload);

  const RankTokens work = padded.rank_tokens({.dp = 0}, 0), none = padded.rank_tokens({.dp = 1}, 0);
  EXPECT_FALSE(work.padded);
  EXPECT_TRUE(none.padded);
  EXPECT_EQ(none.rows.count(), 1);
  EXPECT_EQ(none.positions, std::vector<std::int64_t>{0});
  EXPECT_EQ(none.rows.runs.front().begin, padded.tokens());
  EXPECT_EQ(padded.rows({.dp = 1}, 0).count(), 0);
  EXPECT_FALSE(empty.rank_tokens({.dp = 1}, 0).padded);
  EXPECT_EQ(empty.rank_tokens({.dp = 1}, 0).rows.count(), 0);
}

}  // namespace
}  // namespace shardproof
