#include "emu/plan/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "tests/support/generate.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using Groups = std::vector<std::vector<int>>;

constexpr Axis kAxes[] = {Axis::tp, Axis::cp, Axis::dp, Axis::pp, Axis::etp, Axis::ep, Axis::edp};

TEST(Mesh, RefusesDegreesThatAreNoneAndMoreRanksThanAreCounted) {
  EXPECT_THROW(Mesh(Parallel{.tp = -1}), std::invalid_argument);
  EXPECT_THROW(Mesh(Parallel{.edp = 0}), std::invalid_argument);
  EXPECT_THROW(Mesh(Parallel{.tp = 65536, .dp = 65536}), std::invalid_argument);  // 0 in 32 bits
  EXPECT_EQ(Mesh(Parallel{.tp = 65536}).world(), 65536);
}

// The sixteen-GPU example in the documentation of Megatron's initialize_model_parallel: tensor 2, pipeline 4.
TEST(Mesh, MatchesMegatronsSixteenGpuExample) {
  const Mesh mesh(Parallel{.tp = 2, .dp = 2, .pp = 4, .edp = 4});

  EXPECT_EQ(mesh.groups(Axis::tp), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}));
  EXPECT_EQ(mesh.groups(Axis::dp), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
  EXPECT_EQ(mesh.groups(Axis::pp), (Groups{{0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15}}));
}

// vLLM's groups of decode context parallelism: ranks in a row of tp.
TEST(Mesh, CutsTensorParallelGroupsForDecodeContextParallelism) {
  const Mesh mesh(Parallel{.tp = 4, .dp = 2, .edp = 8, .dcp = 2});

  EXPECT_EQ(mesh.groups(Axis::dcp), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(mesh.coordinates(7).dcp, 1);
}

// Megatron's order tp-cp-ep-dp-pp with context parallelism: cp groups are tp apart, dp groups tp * cp apart.
TEST(Mesh, PutsContextBetweenTensorAndData) {
  const Mesh mesh(Parallel{.tp = 2, .cp = 2, .dp = 2, .pp = 2, .edp = 8});

  EXPECT_EQ(mesh.groups(Axis::cp), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
  EXPECT_EQ(mesh.groups(Axis::dp), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}, {8, 12}, {9, 13}, {10, 14}, {11, 15}}));
}

// The expert generator of the same order: etp fastest, then ep, then edp, then pp.
TEST(Mesh, OrdersExpertAxesLikeMegatronsExpertGenerator) {
  const Mesh mesh(Parallel{.tp = 4, .dp = 2, .pp = 2, .ep = 2, .etp = 2, .edp = 2});

  EXPECT_EQ(mesh.groups(Axis::etp), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}));
  EXPECT_EQ(mesh.groups(Axis::ep), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
  EXPECT_EQ(mesh.groups(Axis::edp), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}, {8, 12}, {9, 13}, {10, 14}, {11, 15}}));
}

// The GPU table of document 000: GPU 4 * stage + i is tensor rank i and expert rank i of the stage.
TEST(Mesh, LaysTp4Ep4Pp4AsTheDocumentsTable) {
  const Mesh mesh(Parallel{.tp = 4, .pp = 4, .ep = 4});

  for (int gpu = 0; gpu < 16; ++gpu) {
    const Coordinates at = mesh.coordinates(gpu);
    EXPECT_EQ(at, (Coordinates{.tp = gpu % 4, .pp = gpu / 4, .ep = gpu % 4})) << "GPU " << gpu;
  }
}

// Document 004: expert i on GPUs 2i and 2i + 1.
TEST(Mesh, GivesEachExpertAPairOfGpusUnderEp64Tp2) {
  const Mesh mesh(Parallel{.tp = 2, .dp = 64, .ep = 64, .etp = 2});

  const Groups pairs = mesh.groups(Axis::etp);

  ASSERT_EQ(pairs.size(), 64u);
  for (int expert = 0; expert < 64; ++expert) {
    EXPECT_THAT(pairs[static_cast<std::size_t>(expert)], ElementsAre(2 * expert, 2 * expert + 1));
    EXPECT_EQ(mesh.coordinates(2 * expert).ep, expert);
  }
  EXPECT_EQ(mesh.groups(Axis::ep).size(), 2u);
}

TEST(Mesh, FoldsExpertsOverTensorAndDataRanks) {
  const Mesh mesh(Parallel{.tp = 2, .dp = 2, .pp = 2, .ep = 4});

  EXPECT_THAT(mesh.group(Axis::tp, 5), ElementsAre(4, 5));
  EXPECT_THAT(mesh.group(Axis::ep, 5), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(mesh.group(Axis::pp, 5), ElementsAre(1, 5));
  EXPECT_EQ(mesh.coordinates(5), (Coordinates{.tp = 1, .dp = 0, .pp = 1, .ep = 1}));
}

TEST(Mesh, OfOneRankHasGroupsOfItself) {
  const Mesh mesh(Parallel{});

  for (const Axis axis : kAxes) EXPECT_EQ(mesh.groups(axis), (Groups{{0}})) << to_string(axis);
}

TEST(Mesh, GroupsOfEveryAxisPartitionTheWorld) {
  const std::uint64_t seed = ::testing::UnitTest::GetInstance()->random_seed() != 0
                                 ? static_cast<std::uint64_t>(::testing::UnitTest::GetInstance()->random_seed())
                                 : 20;
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const Plan plan = testing::random_valid_plan(random, 64);
    const Mesh mesh(plan.parallel);
    SCOPED_TRACE(::testing::Message() << "seed " << seed << ", round " << round);
    for (const Axis axis : kAxes) {
      std::vector<int> seen;
      for (const std::vector<int>& group : mesh.groups(axis)) {
        ASSERT_EQ(static_cast<int>(group.size()), mesh.degree(axis));
        ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
        for (std::size_t i = 0; i < group.size(); ++i) {
          ASSERT_EQ(mesh.coordinates(group[i])[axis], static_cast<int>(i));
          ASSERT_EQ(mesh.group(axis, group[i]), group);
        }
        seen.insert(seen.end(), group.begin(), group.end());
      }
      std::sort(seen.begin(), seen.end());
      ASSERT_EQ(static_cast<int>(seen.size()), mesh.world());
      for (int rank = 0; rank < mesh.world(); ++rank) ASSERT_EQ(seen[static_cast<std::size_t>(rank)], rank);
    }
  }
}

TEST(Mesh, CoordinatesAndRanksAreInverses) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 100; ++round) {
    const Parallel p = testing::random_valid_plan(random, 64).parallel;
    const Mesh mesh(p);
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const Coordinates at = mesh.coordinates(rank);
      ASSERT_EQ(mesh.rank_at(at), rank);
      ASSERT_EQ(at.etp + p.etp * (at.ep + p.ep * (at.edp + p.edp * at.pp)), rank);
    }
  }
}

}  // namespace
}  // namespace shardproof
