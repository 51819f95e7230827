#include "collectives/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using testing::OneGroup;

TEST(World, RefusesGroupsThatCannotBe) {
  World world(4);

  EXPECT_THROW(World(0), std::invalid_argument);
  EXPECT_THROW(World(std::numeric_limits<int>::max()), std::invalid_argument);
  EXPECT_THROW(world.add_group("tp", {}), std::invalid_argument);
  EXPECT_THROW(world.add_group("tp", {GlobalRank{4}}), std::invalid_argument);
  EXPECT_THROW(world.add_group("tp", {GlobalRank{1}, GlobalRank{1}}), std::invalid_argument);
}

TEST(World, RefusesIdsThatAreNoneOfItsOwn) {
  World world(4);
  const GroupId group = world.add_group("tp", {GlobalRank{0}});

  for (const int id : {-1, 1, std::numeric_limits<int>::max()}) {
    EXPECT_THROW((void)world.group(GroupId{id}), std::invalid_argument);
    EXPECT_THROW((void)world.communicator(GroupId{id}, GlobalRank{0}), std::invalid_argument);
  }
  for (const int rank : {-1, 4, std::numeric_limits<int>::min()}) {
    EXPECT_THROW((void)world.records(GlobalRank{rank}), std::invalid_argument);
    EXPECT_THROW((void)world.communicator(group, GlobalRank{rank}), std::invalid_argument);
  }
}

TEST(World, ACommunicatorOfNoneSaysSo) {
  const Communicator none;
  std::vector<float> values(2);

  EXPECT_THROW((void)none.size(), std::logic_error);
  EXPECT_THROW((void)none.group(), std::logic_error);
  EXPECT_THROW((void)none.global_rank(), std::logic_error);
  EXPECT_THROW((void)none.all_reduce(values), std::logic_error);
  EXPECT_THROW((void)none.iall_reduce(values), std::logic_error);
}

TEST(World, NamesListedGroupsByTheirMembers) {
  World world(9);
  const auto name_of = [&](std::initializer_list<int> ranks) {
    std::vector<GlobalRank> members;
    for (const int rank : ranks) members.push_back(GlobalRank{rank});
    return world.group(world.add_listed_group(members)).name();
  };

  EXPECT_EQ(name_of({3, 1}), "ranks[3,1]");
  EXPECT_EQ(name_of({0, 1, 2, 3, 7, 8}), "ranks[0-3,7,8]");
}

TEST(World, NumbersTheGroupsOfAnAxis) {
  World world(4);

  world.add_group("tp", {GlobalRank{0}, GlobalRank{1}});
  const GroupId second = world.add_group("tp", {GlobalRank{3}, GlobalRank{2}});
  const GroupId other = world.add_group("dp", {GlobalRank{0}});

  EXPECT_EQ(world.group(second).name(), "tp[1]");
  EXPECT_EQ(world.group(other).name(), "dp[0]");
  EXPECT_EQ(world.communicator(second, GlobalRank{2}).rank(), GroupRank{1});
  EXPECT_THROW(world.communicator(second, GlobalRank{0}), std::invalid_argument);
}

TEST(World, RanksMayFarOutnumberThreads) {
  constexpr int kRanks = 16384;
  OneGroup group(kRanks);
  std::atomic<int> passed{0};

  group.run([&](Communicator comm) -> Task<> {
    co_await comm.barrier();
    ++passed;
    co_await comm.barrier();
    EXPECT_EQ(passed, kRanks);
  });

  EXPECT_EQ(passed, kRanks);
}

TEST(World, RecordsWhatEveryRankCommunicated) {
  OneGroup group(4);

  group.run([](Communicator comm) -> Task<> {
    std::vector<float> values(8);
    std::vector<float> all(32);
    co_await comm.all_reduce(values);
    co_await comm.all_gather(values, all);
    co_await comm.barrier();
  });

  const auto& records = group.world.records(GlobalRank{2});
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].operation, Operation::all_reduce);
  EXPECT_EQ(records[0].bytes, 2u * 3 * 8 / 4 * sizeof(float));
  EXPECT_EQ(records[0].axis, "world");
  EXPECT_EQ(records[0].group_size, 4);
  EXPECT_EQ(records[1].operation, Operation::all_gather);
  EXPECT_EQ(records[1].bytes, 3u * 8 * sizeof(float));
  EXPECT_EQ(records[2].operation, Operation::barrier);
}

TEST(World, KeepsRecordsOnlyOfRunsThatAreAskedFor) {
  OneGroup group(2);
  const auto program = [](Communicator comm) -> Task<> {
    co_await comm.barrier();
    std::vector<float> values(3);
    if (to_int(comm.rank()) == 0) {
      co_await comm.send(values, GroupRank{1});
    } else {
      co_await comm.recv(values, GroupRank{0});
    }
  };
  const auto kept = [&] {
    group.run(program);
    return std::pair(group.world.records(GlobalRank{0}).size(), group.world.records(GlobalRank{1}).size());
  };

  const auto by_default = kept();
  group.world.keep_records(false);
  const auto off = kept();
  group.world.keep_records(true);
  const auto on_again = kept();

  EXPECT_EQ(by_default, std::pair(std::size_t{2}, std::size_t{2}));
  EXPECT_EQ(off, std::pair(std::size_t{0}, std::size_t{0}));
  EXPECT_EQ(on_again, by_default);
}

TEST(World, OfOptionsWithoutRecordsKeepsNone) {
  OneGroup group(2, {.keep_records = false});

  group.run([](Communicator comm) -> Task<> { co_await comm.barrier(); });

  EXPECT_TRUE(group.world.records(GlobalRank{0}).empty());
}

TEST(World, RethrowsARanksErrorAndDestroysTheOthersFrames) {
  OneGroup group(5);
  const auto held = std::make_shared<int>(0);

  try {
    group.run([&held](Communicator comm) -> Task<> {
      const std::shared_ptr<int> mine = held;  // NOLINT(performance-unnecessary-copy-initialization): counted below
      co_await comm.barrier();
      if (to_int(comm.rank()) == 3) throw std::runtime_error("out of paper");
      co_await comm.barrier();
      ADD_FAILURE() << "a rank passed a barrier that rank 3 never reached";
    });
    FAIL() << "nothing was thrown";
  } catch (const RankError& error) {
    EXPECT_EQ(error.rank(), GlobalRank{3});
    EXPECT_THAT(error.what(), HasSubstr("out of paper"));
    EXPECT_THROW(error.rethrow_nested(), std::runtime_error);
    EXPECT_EQ(error.graph().rendezvous.size(), 1u);
  }

  EXPECT_EQ(held.use_count(), 1);
}

TEST(World, RunsAgainAfterAFailure) {
  OneGroup group(3);
  EXPECT_THROW(group.run([](Communicator comm) -> Task<> {
    if (to_int(comm.rank()) != 0) co_await comm.barrier();
  }),
               DeadlockError);
  int sum = 0;

  group.run([&sum](Communicator comm) -> Task<> {
    std::vector<int> one{1};
    co_await comm.all_reduce(one);
    if (to_int(comm.rank()) == 0) sum = one[0];
  });

  EXPECT_EQ(sum, 3);
}

TEST(World, RefusesToRunInsideItsOwnRun) {
  OneGroup group(2);

  try {
    group.run([&group](Communicator comm) -> Task<> {
      co_await comm.barrier();
      if (to_int(comm.rank()) == 1) group.run([](Communicator inner) -> Task<> { co_await inner.barrier(); });
    });
    FAIL() << "nothing was thrown";
  } catch (const RankError& error) {
    EXPECT_THAT(error.what(), HasSubstr("while the same world is running"));
  }
}

TEST(World, ThrowsTheErrorOfTheLowestRankWhateverTheSchedule) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    OneGroup group(6);
    SeededExecutor executor(seed);

    try {
      group.run(executor, [](Communicator comm) -> Task<> {
        co_await comm.barrier();
        if (to_int(comm.rank()) >= 2) throw std::runtime_error("late");
      });
      FAIL() << "nothing was thrown";
    } catch (const RankError& error) {
      EXPECT_EQ(error.rank(), GlobalRank{2});
    }
  }
}

template <class Call>
concept AwaitedAsItIs = requires(Call&& call) {
  static_cast<Call&&>(call).operator co_await();
};

// A call refers to its buffers and counts: what could be gone when it is awaited does not compile.
static_assert(AwaitedAsItIs<PendingCall>);
static_assert(!AwaitedAsItIs<PendingCall&>);
static_assert(std::is_constructible_v<CountsView, std::vector<std::size_t>&>);
static_assert(std::is_constructible_v<CountsView, std::span<const std::size_t>>);
static_assert(!std::is_constructible_v<CountsView, std::vector<std::size_t>>);

}  // namespace
}  // namespace shardproof
