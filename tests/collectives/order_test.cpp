// Orders are faithful: an oracle that really moves the chunks, rank by rank and step by step, agrees bit for bit.
#include "collectives/algorithms/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "collectives/algorithms/tree.h"
#include "tests/collectives/helpers.h"
#include "tests/collectives/oracles.h"

namespace shardproof {
namespace {

using namespace testing;  // the oracles

class Orders : public ::testing::TestWithParam<Numbers> {};
INSTANTIATE_TEST_SUITE_P(Formats, Orders,
                         ::testing::Values(Numbers{false, false}, Numbers{true, false}, Numbers{true, true},
                                           Numbers{false, true}),
                         [](const ::testing::TestParamInfo<Numbers>& numbers) {
                           return std::string(numbers.param.wire ? "CoarseWire" : "NativeWire") +
                                  (numbers.param.accumulate ? "CoarseSums" : "NativeSums");
                         });

void expect_faithful(const Numbers& numbers, Algorithm algorithm, int ranks, std::size_t count, int per_node) {
  const Buffers inputs = rough_inputs(ranks, count, static_cast<std::uint64_t>(ranks) * 1000 + count);
  Buffers expected = at_rest(numbers, inputs);
  switch (algorithm) {
    case Algorithm::rank_order:
      oracle_rank_order(numbers, expected);
      break;
    case Algorithm::ring:
      oracle_ring(numbers, expected);
      break;
    case Algorithm::tree:
      oracle_tree(numbers, expected);
      break;
    case Algorithm::recursive_doubling:
      oracle_recursive_doubling(numbers, expected);
      break;
    case Algorithm::hierarchical:
      oracle_hierarchical(numbers, expected, static_cast<std::size_t>(per_node));
      break;
  }
  OneGroup group(ranks);
  group.run([&](Communicator comm) -> Task<> {
    std::vector<float> values = inputs[index(comm.rank())];
    co_await comm.all_reduce(values, numbers.options(algorithm, per_node));
    EXPECT_TRUE(same_bits(values, expected[index(comm.rank())]))
        << to_string(algorithm) << ", " << ranks << " ranks, " << count << " elements, rank " << to_int(comm.rank());
  });
}

TEST_P(Orders, AgreeWithAnOracleThatMovesTheChunksStepByStep) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 24}) {
      for (const std::size_t count : {0u, 1u, 7u, 64u, 1003u, 5000u}) {
        const int per_node = ranks % 4 == 0 ? 4 : ranks % 3 == 0 ? 3 : ranks;
        expect_faithful(GetParam(), algorithm, ranks, count, per_node);
      }
    }
  }
}

TEST_P(Orders, OfLargeDataSplitOverThreadsAreTheSame) {
  for (const Algorithm algorithm : kAlgorithms) expect_faithful(GetParam(), algorithm, 8, 50'001, 4);
}

// Members of a group that lie unevenly on the nodes of a larger world: [group rank] -> global rank.
const std::vector<std::vector<int>> kUneven{
    {0, 1, 2, 3, 4}, {0, 1, 2, 4, 5, 6, 7, 8, 11}, {5, 6, 7, 8, 9, 10, 11}, {9, 2, 0, 11, 5, 4, 3}, {0, 4, 8, 9}, {7}};

std::vector<Members> nodes_of(const std::vector<int>& members, int gpus_per_node) {
  std::map<int, Members> nodes;
  for (std::size_t i = 0; i < members.size(); ++i) nodes[members[i] / gpus_per_node].push_back(i);
  std::vector<Members> result;
  for (const auto& [number, node] : nodes) result.push_back(node);
  return result;
}

TEST_P(Orders, OfHierarchicalOnUnevenNodesFollowTheChainsAndTheRing) {
  constexpr int kPerNode = 4;
  int uneven = 0;
  for (const std::vector<int>& members : kUneven) {
    for (const std::size_t count : {0u, 1u, 2u, 7u, 64u, 1003u, 5000u}) {
      const std::vector<Members> nodes = nodes_of(members, kPerNode);
      uneven += std::any_of(nodes.begin(), nodes.end(), [&](const Members& n) { return n.size() != nodes[0].size(); });
      const Buffers inputs = rough_inputs(static_cast<int>(members.size()), count, 77 + count);
      Buffers expected = at_rest(GetParam(), inputs);
      oracle_hierarchical_uneven(GetParam(), expected, nodes);
      World world(12);
      std::vector<GlobalRank> ranks;
      for (const int rank : members) ranks.push_back(GlobalRank{rank});
      const GroupId group = world.add_group("dp", ranks);
      const auto program = [&](GlobalRank rank) -> Task<> {
        if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) co_return;
        const Communicator comm = world.communicator(group, rank);
        std::vector<float> values = inputs[index(comm.rank())];
        co_await comm.all_reduce(values, GetParam().options(Algorithm::hierarchical, kPerNode));
        EXPECT_TRUE(same_bits(values, expected[index(comm.rank())])) << members.size() << " ranks, " << count;
      };
      DefaultExecutor executor(2);
      world.run(executor, program);
    }
  }
  EXPECT_GE(uneven, 4 * 7);
}

TEST_P(Orders, OfHierarchicalWithALastNodeThatIsNotFull) {
  for (const auto& [ranks, per_node] : {std::pair{5, 2}, {7, 3}, {9, 8}, {10, 4}, {13, 8}, {23, 8}}) {
    const Buffers inputs = rough_inputs(ranks, 1003, 9);
    std::vector<int> members;
    for (int rank = 0; rank < ranks; ++rank) members.push_back(rank);
    Buffers expected = at_rest(GetParam(), inputs);
    oracle_hierarchical_uneven(GetParam(), expected, nodes_of(members, per_node));
    OneGroup group(ranks);
    group.run([&, per_node = per_node](Communicator comm) -> Task<> {
      std::vector<float> values = inputs[index(comm.rank())];
      co_await comm.all_reduce(values, GetParam().options(Algorithm::hierarchical, per_node));
      EXPECT_TRUE(same_bits(values, expected[index(comm.rank())])) << comm.size() << " on nodes of " << per_node;
    });
  }
}

TEST_P(Orders, OfReduceScatterAreRankOrderOrTheRing) {
  const Numbers numbers = GetParam();
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (const bool even : {true, false}) {
      // Uneven: empty parts, and a part longer than a block of the evaluator.
      std::vector<std::size_t> counts;
      std::vector<std::size_t> bounds{0};
      for (int r = 0; r < ranks; ++r) {
        counts.push_back(even ? 37 : r % 3 == 1 ? 0 : static_cast<std::size_t>(700 * r + 5));
        bounds.push_back(bounds.back() + counts.back());
      }
      const Buffers inputs = rough_inputs(ranks, bounds.back(), 5);
      Buffers around = at_rest(numbers, inputs);
      oracle_ring_scatter(numbers, around, bounds);
      Buffers direct = at_rest(numbers, inputs);
      oracle_rank_order(numbers, direct);
      OneGroup group(ranks);
      group.run([&](Communicator comm) -> Task<> {
        const std::size_t me = index(comm.rank());
        const Range mine{bounds[me], bounds[me + 1]};
        for (const Algorithm algorithm : {Algorithm::ring, Algorithm::rank_order}) {
          const Buffers& expected = algorithm == Algorithm::ring ? around : direct;
          std::vector<float> out(counts[me]);
          co_await comm.reduce_scatter_v(inputs[me], out, counts, numbers.options(algorithm));
          EXPECT_TRUE(same_bits(out, slice(expected[me], mine))) << to_string(algorithm) << " " << comm.size();
        }
      });
    }
  }
}

TEST_P(Orders, OfReduceAreRankOrderOrAChainThatEndsAtTheRoot) {
  const Numbers numbers = GetParam();
  for (const int ranks : {1, 2, 3, 5, 8, 13}) {
    for (const std::size_t count : {1u, 600u, 20'000u}) {
      if (count > 600 && ranks > 5) continue;
      const Buffers inputs = rough_inputs(ranks, count, 21);
      Buffers direct = at_rest(numbers, inputs);
      oracle_rank_order(numbers, direct);
      OneGroup group(ranks);
      group.run([&](Communicator comm) -> Task<> {
        for (int root = 0; root < comm.size(); ++root) {
          const auto at = static_cast<std::size_t>(root);
          const bool is_root = to_int(comm.rank()) == root;
          Buffers chain;
          if (is_root) oracle_chain(numbers, chain = at_rest(numbers, inputs), at);
          for (const Algorithm algorithm : {Algorithm::ring, Algorithm::rank_order}) {
            std::vector<float> out(is_root ? count : 0);
            co_await comm.reduce(inputs[index(comm.rank())], out, GroupRank{root}, numbers.options(algorithm));
            if (!is_root) continue;
            const Buffers& expected = algorithm == Algorithm::ring ? chain : direct;
            EXPECT_TRUE(same_bits(out, expected[at])) << to_string(algorithm) << " " << comm.size() << " root " << root;
          }
        }
      });
    }
  }
}

TEST(Orders, OfReduceDifferWithTheRootOnRoughData) {
  // Else the chain's oracle would prove nothing.
  const Buffers inputs = rough_inputs(5, 600, 21);
  std::vector<std::vector<float>> sums;
  for (std::size_t root = 0; root < 5; ++root) {
    Buffers chain = inputs;
    oracle_chain({}, chain, root);
    sums.push_back(chain[root]);
  }

  for (std::size_t a = 0; a < sums.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) EXPECT_FALSE(same_bits(sums[a], sums[b])) << a << " " << b;
  }
}

TEST(Orders, DifferFromOneAnotherOnRoughData) {
  const Buffers inputs = rough_inputs(13, 1000, 3);
  std::vector<std::vector<float>> results;

  for (const Algorithm algorithm : kAlgorithms) {
    OneGroup group(13);
    std::vector<float> result;
    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> values = inputs[index(comm.rank())];
      co_await comm.all_reduce(values, {.algorithm = algorithm, .gpus_per_node = 4});
      if (to_int(comm.rank()) == 0) result = values;
    });
    results.push_back(result);
  }

  for (std::size_t a = 0; a < results.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) EXPECT_FALSE(same_bits(results[a], results[b])) << a << " " << b;
  }
}

TEST(Accumulation, InDoubleRoundsOnlyWhatIsSent) {
  // 1 + 2^-24 + 2^-24 is 1 when every addition rounds to float, and 1 + 2^-23 when it is added in double.
  const std::vector<float> parts{1.0f, 0x1p-24f, 0x1p-24f};
  const auto sum = [&](Algorithm algorithm, int bytes) {
    OneGroup group(3);
    float result = 0;
    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> value(1, parts[index(comm.rank())]);
      co_await comm.all_reduce(value, {.algorithm = algorithm, .accumulate = {.name = "fp64", .bytes = bytes}});
      if (to_int(comm.rank()) == 0) result = value[0];
    });
    return result;
  };

  EXPECT_EQ(sum(Algorithm::rank_order, 0), 1.0f);
  EXPECT_EQ(sum(Algorithm::rank_order, 8), 1.0f + 0x1p-23f);
}

TEST(DoubleTree, IsTheOneThatNcclDraws) {
  const auto node = [](int ranks, int tree, int rank) {
    const TreeNode n = double_tree_node(ranks, tree, rank);
    return std::array{n.parent, n.first_child, n.second_child};
  };

  EXPECT_EQ(node(14, 0, 0), (std::array{-1, -1, 8}));
  EXPECT_EQ(node(14, 0, 8), (std::array{0, 4, 12}));
  EXPECT_EQ(node(14, 0, 4), (std::array{8, 2, 6}));
  EXPECT_EQ(node(14, 0, 12), (std::array{8, 10, 13}));
  EXPECT_EQ(node(14, 0, 13), (std::array{12, -1, -1}));
  EXPECT_EQ(node(14, 1, 13), (std::array{-1, -1, 5}));  // the mirror image
  EXPECT_EQ(node(14, 1, 5), (std::array{13, 9, 1}));
  EXPECT_EQ(node(3, 1, 1), (std::array{-1, -1, 0}));  // the shift, for an odd number
}

TEST(DoubleTree, EveryRankIsALeafInAtLeastOneTreeForEvenRanks) {
  for (int ranks = 2; ranks <= 64; ranks += 2) {
    for (int rank = 0; rank < ranks; ++rank) {
      int inner = 0;
      for (const int tree : {0, 1}) {
        const TreeNode node = double_tree_node(ranks, tree, rank);
        inner += node.first_child >= 0 || node.second_child >= 0;
      }
      EXPECT_LE(inner, 1) << ranks << " " << rank;
    }
  }
}

}  // namespace
}  // namespace shardproof
