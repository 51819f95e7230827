// Gloo's grid of ranks and counts, every operation, algorithm and type, on data whose sums are exact: no error at all,
// and the same bits on every rank; then MPICH's adversary, and equality over schedules.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <optional>

#include "collectives/traffic.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using testing::index;
using testing::make_input;
using testing::OneGroup;
using testing::value_at;

constexpr int kRankSweep[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 24, 32};
constexpr std::size_t kCountSweep[] = {0, 1, 3, 64, 100, 1000};

template <class T>
T reduced(Reduction reduction, int ranks, std::size_t i) {
  T result = value_at<T>(0, i);
  for (int r = 1; r < ranks; ++r) {
    const T next = value_at<T>(r, i);
    if (reduction == Reduction::max) {
      result = std::max(result, next);
    } else if (reduction == Reduction::min) {
      result = std::min(result, next);
    } else {
      result = static_cast<T>(result + next);  // of 8 bits they wrap around from 12 ranks on
    }
  }
  return reduction == Reduction::average ? static_cast<T>(result / static_cast<T>(ranks)) : result;
}

template <class T>
class Grid : public ::testing::Test {};
using Types = ::testing::Types<float, double, std::int8_t, std::uint8_t, std::int16_t, std::uint16_t, std::int32_t,
                               std::uint32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(Grid, Types);

TYPED_TEST(Grid, AllReduceIsExactInEveryAlgorithmAndReduction) {
  using T = TypeParam;
  for (const int ranks : kRankSweep) {
    for (const std::size_t count : kCountSweep) {
      OneGroup group(ranks);
      group.run([&](Communicator comm) -> Task<> {
        for (const Algorithm algorithm : kAlgorithms) {
          for (const Reduction reduction : {Reduction::sum, Reduction::max, Reduction::min, Reduction::average}) {
            const ReduceOptions options{.reduction = reduction, .algorithm = algorithm, .gpus_per_node = 4};
            std::vector<T> values = make_input<T>(to_int(comm.rank()), count);
            std::vector<T> out(count);
            co_await comm.all_reduce(values, out, options);
            co_await comm.all_reduce(values, options);
            bool exact = true;
            for (std::size_t i = 0; i < count; ++i) exact = exact && out[i] == reduced<T>(reduction, ranks, i);
            EXPECT_TRUE(exact) << to_string(algorithm) << " " << to_string(reduction) << " " << ranks << " " << count;
            EXPECT_EQ(values, out);
          }
        }
      });
    }
  }
}

TYPED_TEST(Grid, ReduceScatterAndReduceAreExactInEveryAlgorithm) {
  using T = TypeParam;
  for (const int ranks : kRankSweep) {
    for (const std::size_t count : kCountSweep) {
      OneGroup group(ranks);
      group.run([&](Communicator comm) -> Task<> {
        const std::size_t total = count * static_cast<std::size_t>(ranks);
        const std::vector<T> in = make_input<T>(to_int(comm.rank()), total);
        const std::span<const T> first(in.data(), count);
        for (const Algorithm algorithm : {Algorithm::rank_order, Algorithm::ring}) {
          for (const Reduction reduction : {Reduction::sum, Reduction::max, Reduction::min, Reduction::average}) {
            std::vector<T> out(count);
            co_await comm.reduce_scatter(in, out, {.reduction = reduction, .algorithm = algorithm});
            bool exact = true;
            for (std::size_t i = 0; i < count; ++i) {
              exact = exact && out[i] == reduced<T>(reduction, ranks, index(comm.rank()) * count + i);
            }
            const int root = ranks / 2;
            std::vector<T> at_root(to_int(comm.rank()) == root ? count : 0);
            co_await comm.reduce(first, at_root, GroupRank{root}, {.reduction = reduction, .algorithm = algorithm});
            for (std::size_t i = 0; i < at_root.size(); ++i) {
              exact = exact && at_root[i] == reduced<T>(reduction, ranks, i);
            }
            EXPECT_TRUE(exact) << to_string(algorithm) << " " << to_string(reduction) << " " << ranks << " " << count;
          }
        }
      });
    }
  }
}

TYPED_TEST(Grid, MovementsDeliverEveryElementInEveryAlgorithm) {
  using T = TypeParam;
  for (const int ranks : kRankSweep) {
    for (const std::size_t count : kCountSweep) {
      OneGroup group(ranks);
      group.run([&](Communicator comm) -> Task<> {
        const std::size_t total = count * static_cast<std::size_t>(ranks);
        for (const bool direct : {true, false}) {
          std::vector<T> out(total);
          co_await comm.all_gather(make_input<T>(to_int(comm.rank()), count), out,
                                   {.algorithm = direct ? Algorithm::rank_order : Algorithm::ring});
          std::vector<T> turned(total);
          co_await comm.all_to_all(make_input<T>(to_int(comm.rank()), total), turned,
                                   {.algorithm = direct ? Algorithm::rank_order : Algorithm::hierarchical});
          bool exact = true;
          for (std::size_t i = 0; i < total; ++i) {
            const int from = static_cast<int>(i / count);
            exact = exact && out[i] == value_at<T>(from, i % count);
            exact = exact && turned[i] == value_at<T>(from, index(comm.rank()) * count + i % count);
          }
          EXPECT_TRUE(exact) << ranks << " " << count;
        }
        const int root = ranks - 1;
        std::vector<T> values = make_input<T>(to_int(comm.rank()), count);
        co_await comm.broadcast(values, GroupRank{root});
        EXPECT_EQ(values, make_input<T>(root, count)) << ranks << " " << count;
      });
    }
  }
}

// +-1e6 at one pair of positions, 1e-2 elsewhere: any two ranks that add in different orders differ.
template <class T>
void expect_equal_bits_of_the_adversary(int ranks) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (int plus = 0; plus < ranks; ++plus) {
      OneGroup group(ranks);
      std::vector<std::vector<T>> results(static_cast<std::size_t>(ranks));
      group.run([&](Communicator comm) -> Task<> {
        const int me = to_int(comm.rank());
        std::vector<T> values;
        for (int minus = 0; minus < ranks; ++minus) {
          values.push_back(me == plus ? T(1e6) : me == minus ? T(-1e6) : T(1e-2));
        }
        co_await comm.all_reduce(values, {.algorithm = algorithm, .gpus_per_node = 3});
        results[index(comm.rank())] = values;
      });
      for (const auto& result : results) {
        EXPECT_EQ(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(T)), 0) << to_string(algorithm);
      }
    }
  }
}

TEST(Adversary, LeavesTheSameBitsOnAllRanks) {
  for (const int ranks : {2, 5, 9, 13}) {
    expect_equal_bits_of_the_adversary<double>(ranks);
    expect_equal_bits_of_the_adversary<float>(ranks);
  }
}

TEST(Schedules, DoNotChangeABit) {
  const auto run = [](Executor& executor) {
    OneGroup group(6);
    std::vector<std::vector<float>> results(6);
    group.run(executor, [&](Communicator comm) -> Task<> {
      const int me = to_int(comm.rank());
      std::vector<float>& values = results[index(comm.rank())];
      for (std::size_t i = 0; i < 20000; ++i)
        values.push_back(1.0f / static_cast<float>(me * 20000 + static_cast<int>(i) + 1));
      for (const Algorithm algorithm : kAlgorithms) {
        co_await comm.all_reduce(values, {.reduction = Reduction::average, .algorithm = algorithm, .gpus_per_node = 2});
        for (std::size_t i = 0; i < values.size(); ++i) values[i] += static_cast<float>(me) * 0.1f;
      }
    });
    return results;
  };
  ThreadExecutor threads(3);
  const auto expected = run(threads);

  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SeededExecutor executor(seed);
    EXPECT_EQ(run(executor), expected) << seed;
  }
}

std::uint64_t sum_of_bytes(const World& world, std::size_t record) {
  std::uint64_t bytes = 0;
  for (int rank = 0; rank < world.size(); ++rank) bytes += world.records(GlobalRank{rank})[record].bytes;
  return bytes;
}

TEST(Records, CountTheBytesOfEveryAlgorithm) {
  constexpr std::uint64_t kSize = 1000 * sizeof(float);
  for (const int ranks : {2, 3, 8, 12, 13}) {
    OneGroup group(ranks);
    group.run([](Communicator comm) -> Task<> {
      std::vector<float> values(1000);
      for (const Algorithm algorithm : kAlgorithms) {
        co_await comm.all_reduce(values, {.algorithm = algorithm, .gpus_per_node = 4});
      }
      std::vector<float> all(1000 * static_cast<std::size_t>(comm.size()));
      co_await comm.all_gather(values, all, {.algorithm = Algorithm::ring});
      co_await comm.broadcast(values, GroupRank{1});
      co_await comm.reduce_scatter(all, values);
    });

    // Each total is that of a message count times the size, however the chunks are cut.
    const auto n = static_cast<std::uint64_t>(ranks);
    const std::uint64_t participants = std::bit_floor(n);
    const auto doublings = static_cast<std::uint64_t>(std::bit_width(participants) - 1);
    EXPECT_EQ(sum_of_bytes(group.world, 0), 2 * (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 1), 2 * (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 2), 2 * (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 3), (participants * doublings + 2 * (n - participants)) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 4), 2 * (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 5), n * (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 6), (n - 1) * kSize);
    EXPECT_EQ(sum_of_bytes(group.world, 7), n * (n - 1) * kSize);
  }
}

TEST(Records, CountTheForwardingOfAHierarchicalAllToAll) {
  OneGroup group(8);

  group.run([](Communicator comm) -> Task<> {
    std::vector<float> in(80);
    std::vector<float> out(80);
    co_await comm.all_to_all(in, out, {.algorithm = Algorithm::hierarchical, .gpus_per_node = 4});
  });

  // To three neighbours what they forward or keep (2 x 10 each), and across to one peer what four ranks have for it.
  EXPECT_EQ(group.world.records(GlobalRank{5})[0].bytes, (3 * 20 + 4 * 10) * sizeof(float));
}

TEST(Records, CountWireBytes) {
  OneGroup group(4);

  group.run([](Communicator comm) -> Task<> {
    std::vector<float> values(100);
    co_await comm.all_reduce(values, {.algorithm = Algorithm::ring, .wire = {.name = "half", .bytes = 2}});
  });

  EXPECT_EQ(group.world.records(GlobalRank{0})[0].bytes, 2u * 75 * 2);
}

TEST(Traffic, FactorsAreThoseOfNcclTests) {
  EXPECT_DOUBLE_EQ(bus_bandwidth_factor(Operation::all_reduce, 16), 1.875);
  EXPECT_DOUBLE_EQ(bus_bandwidth_factor(Operation::all_to_all, 4), 0.75);
  EXPECT_DOUBLE_EQ(bus_bandwidth_factor(Operation::broadcast, 4), 1);
  EXPECT_EQ(steps(Operation::all_reduce, Algorithm::ring, 8), 14);
  EXPECT_EQ(steps(Operation::all_reduce, Algorithm::recursive_doubling, 13), 5);
  EXPECT_EQ(steps(Operation::all_reduce, Algorithm::hierarchical, 16, 2), 16);
}

}  // namespace
}  // namespace shardproof
