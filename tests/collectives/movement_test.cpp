// What every collective delivers, on data whose sums are exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using testing::index;
using testing::make_input;
using testing::OneGroup;
using testing::value_at;

class Sizes : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Sizes, ::testing::Values(1, 2, 3, 7, 16));

constexpr std::size_t kCounts[] = {0, 1, 5, 1000, 30000};

TEST_P(Sizes, AllReduceSumsInPlaceAndOutOfPlace) {
  const int n = GetParam();
  for (const std::size_t count : kCounts) {
    std::vector<float> expected(count, 0);
    for (int r = 0; r < n; ++r) {
      for (std::size_t i = 0; i < count; ++i) expected[i] += value_at<float>(r, i);
    }
    OneGroup group(n);

    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> in = make_input<float>(to_int(comm.rank()), count);
      std::vector<float> out(count);
      co_await comm.all_reduce(in, out);
      EXPECT_EQ(out, expected);
      co_await comm.all_reduce(in);
      EXPECT_EQ(in, expected);
    });
  }
}

TEST_P(Sizes, AllGatherPutsEveryPartInRankOrder) {
  const int n = GetParam();
  for (const std::size_t count : kCounts) {
    std::vector<int> expected;
    for (int r = 0; r < n; ++r) {
      for (const int value : make_input<int>(r, count)) expected.push_back(value);
    }
    OneGroup group(n);

    group.run([&](Communicator comm) -> Task<> {
      const std::vector<int> in = make_input<int>(to_int(comm.rank()), count);
      std::vector<int> out(count * static_cast<std::size_t>(n));
      co_await comm.all_gather(in, out);
      EXPECT_EQ(out, expected);

      std::vector<int> in_place(out.size());
      const std::span<int> own = std::span(in_place).subspan(index(comm.rank()) * count, count);
      std::copy(in.begin(), in.end(), own.begin());
      co_await comm.all_gather(own, in_place);
      EXPECT_EQ(in_place, expected);
    });
  }
}

TEST_P(Sizes, AllGatherVTakesEmptyAndUnequalParts) {
  const int n = GetParam();
  std::vector<std::size_t> counts;
  std::vector<double> expected;
  for (int r = 0; r < n; ++r) {
    counts.push_back(static_cast<std::size_t>(r % 3 * 5));
    for (const double value : make_input<double>(r, counts.back())) expected.push_back(value);
  }
  OneGroup group(n);

  group.run([&](Communicator comm) -> Task<> {
    std::vector<double> out(expected.size());
    co_await comm.all_gather_v(make_input<double>(to_int(comm.rank()), counts[index(comm.rank())]), out, counts);
    EXPECT_EQ(out, expected);
  });
}

TEST_P(Sizes, ReduceScatterGivesEveryRankItsPartOfTheSum) {
  const int n = GetParam();
  for (const std::size_t count : kCounts) {
    const std::size_t total = count * static_cast<std::size_t>(n);
    std::vector<float> sum(total, 0);
    for (int r = 0; r < n; ++r) {
      for (std::size_t i = 0; i < total; ++i) sum[i] += value_at<float>(r, i);
    }
    OneGroup group(n);

    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> in = make_input<float>(to_int(comm.rank()), total);
      const auto part = std::span(sum).subspan(index(comm.rank()) * count, count);
      std::vector<float> out(count);
      co_await comm.reduce_scatter(in, out);
      EXPECT_TRUE(std::ranges::equal(out, part));

      const std::span<float> own = std::span(in).subspan(index(comm.rank()) * count, count);
      co_await comm.reduce_scatter(in, own);
      EXPECT_TRUE(std::ranges::equal(own, part));
    });
  }
}

TEST_P(Sizes, ReduceScatterVTakesEmptyAndUnequalParts) {
  const int n = GetParam();
  std::vector<std::size_t> counts;
  std::vector<std::size_t> begins{0};
  for (int r = 0; r < n; ++r) {
    counts.push_back(static_cast<std::size_t>((r + 1) % 4 * 3));
    begins.push_back(begins.back() + counts.back());
  }
  OneGroup group(n);

  group.run([&](Communicator comm) -> Task<> {
    const std::size_t me = index(comm.rank());
    std::vector<double> out(counts[me]);
    co_await comm.reduce_scatter_v(make_input<double>(to_int(comm.rank()), begins.back()), out, counts);
    for (std::size_t i = 0; i < out.size(); ++i) {
      double expected = 0;
      for (int r = 0; r < n; ++r) expected += value_at<double>(r, begins[me] + i);
      EXPECT_EQ(out[i], expected);
    }
  });
}

TEST_P(Sizes, AllToAllTransposesTheParts) {
  const int n = GetParam();
  for (const std::size_t count : kCounts) {
    OneGroup group(n);

    group.run([&](Communicator comm) -> Task<> {
      const auto total = count * static_cast<std::size_t>(n);
      std::vector<float> out(total, -1);
      co_await comm.all_to_all(make_input<float>(to_int(comm.rank()), total), out);
      bool equal = true;
      for (std::size_t i = 0; i < total; ++i) {
        const int from = static_cast<int>(i / std::max<std::size_t>(count, 1));
        const std::size_t at = index(comm.rank()) * count + i % std::max<std::size_t>(count, 1);
        equal = equal && out[i] == value_at<float>(from, at);
      }
      EXPECT_TRUE(equal);
    });
  }
}

TEST_P(Sizes, AllToAllVMovesEveryEdge) {
  const int n = GetParam();
  // Rank i sends (i + 2 j) % 4 elements to rank j: some edges are empty.
  const auto edge = [](int from, int to) { return static_cast<std::size_t>((from + 2 * to) % 4); };
  OneGroup group(n);

  group.run([&](Communicator comm) -> Task<> {
    const int me = to_int(comm.rank());
    std::vector<std::size_t> send_counts;
    std::vector<std::size_t> recv_counts;
    std::vector<int> in;
    std::vector<int> expected;
    for (int other = 0; other < n; ++other) {
      send_counts.push_back(edge(me, other));
      recv_counts.push_back(edge(other, me));
      for (std::size_t i = 0; i < edge(me, other); ++i) in.push_back(me * 1000 + other * 10 + static_cast<int>(i));
      for (std::size_t i = 0; i < edge(other, me); ++i)
        expected.push_back(other * 1000 + me * 10 + static_cast<int>(i));
    }
    std::vector<int> out(expected.size());
    co_await comm.all_to_all_v(in, send_counts, out, recv_counts);
    EXPECT_EQ(out, expected);
  });
}

TEST_P(Sizes, BroadcastAndReduceServeEveryRoot) {
  const int n = GetParam();
  OneGroup group(n);

  group.run([&](Communicator comm) -> Task<> {
    for (int root = 0; root < n; ++root) {
      std::vector<float> values = make_input<float>(to_int(comm.rank()), 100);
      co_await comm.broadcast(values, GroupRank{root});
      EXPECT_EQ(values, make_input<float>(root, 100));

      const bool is_root = to_int(comm.rank()) == root;
      std::vector<float> out(is_root ? 100u : 0u);
      co_await comm.reduce(make_input<float>(to_int(comm.rank()), 100), out, GroupRank{root});
      for (std::size_t i = 0; i < out.size(); ++i) {
        float expected = 0;
        for (int r = 0; r < n; ++r) expected += value_at<float>(r, i);
        EXPECT_EQ(out[i], expected);
      }
    }
  });
}

TEST_P(Sizes, ExchangeRotatesWithoutWaitingInLine) {
  const int n = GetParam();
  OneGroup group(n);

  group.run([&](Communicator comm) -> Task<> {
    const int me = to_int(comm.rank());
    const std::vector<int> first = make_input<int>(me, 10);
    const std::vector<int> second = make_input<int>(me + 100, 20);
    std::vector<int> got_first(10);
    std::vector<int> got_second(20);
    // Two messages to the same neighbour (which is the rank itself when it is alone) match in order.
    const std::vector<Send> sends{Send(first, GroupRank{(me + 1) % n}), Send(second, GroupRank{(me + 1) % n})};
    const std::vector<Recv> recvs{Recv(got_first, GroupRank{(me + n - 1) % n}),
                                  Recv(got_second, GroupRank{(me + n - 1) % n})};
    co_await comm.exchange({sends, recvs});
    EXPECT_EQ(got_first, make_input<int>((me + n - 1) % n, 10));
    EXPECT_EQ(got_second, make_input<int>((me + n - 1) % n + 100, 20));
  });
}

TEST(PointToPoint, MessagesOfAPairArriveInOrder) {
  OneGroup group(2);

  group.run([](Communicator comm) -> Task<> {
    for (int i = 0; i < 50; ++i) {
      std::vector<int> value{i};
      if (to_int(comm.rank()) == 0) {
        co_await comm.send(value, GroupRank{1});
      } else {
        value[0] = -1;
        co_await comm.recv(value, GroupRank{0});
        EXPECT_EQ(value[0], i);
      }
    }
  });
}

Task<> send_values(Communicator comm, const std::vector<int>& values, GroupRank to) {
  co_await comm.send(values, to);
}
Task<> receive_values(Communicator comm, std::vector<int>& values, GroupRank from) {
  co_await comm.recv(values, from);
}

TEST(PointToPoint, SeveralCallsOfOneRankMayBeUnderWayAtOnce) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    OneGroup group(3);
    SeededExecutor executor(seed);
    const std::vector<int> to_one = make_input<int>(1, 5), to_two = make_input<int>(2, 9);
    std::vector<int> from_one(2), from_two(7), at_one(5), at_two(9);
    std::vector<Task<>> started;  // outlive their rank, which does not wait for them

    group.run(executor, [&](Communicator comm) -> Task<> {
      if (to_int(comm.rank()) == 0) {
        for (int peer : {2, 1})
          started.push_back(receive_values(comm, peer == 1 ? from_one : from_two, GroupRank{peer}));
        for (int peer : {2, 1}) started.push_back(send_values(comm, peer == 1 ? to_one : to_two, GroupRank{peer}));
        for (const Task<>& task : started) task.handle().resume();
      } else {
        const int me = to_int(comm.rank());
        const std::vector<int> mine = make_input<int>(me + 10, me == 1 ? 2 : 7);
        co_await comm.recv(me == 1 ? at_one : at_two, GroupRank{0});
        co_await comm.send(mine, GroupRank{0});
      }
    });

    EXPECT_EQ(at_one, to_one);
    EXPECT_EQ(at_two, to_two);
    EXPECT_EQ(from_one, make_input<int>(11, 2));
    EXPECT_EQ(from_two, make_input<int>(12, 7));
    for (const Task<>& task : started) EXPECT_TRUE(task.done());
  }
}

TEST(Reductions, MaxMinAndAverageHoldForIntegersToo) {
  OneGroup group(3);

  group.run([](Communicator comm) -> Task<> {
    const std::vector<std::int8_t> mine(1, static_cast<std::int8_t>(to_int(comm.rank()) * 40 - 30));  // -30, 10, 50
    std::vector<std::int8_t> out(1);
    co_await comm.all_reduce(mine, out, {.reduction = Reduction::max});
    EXPECT_EQ(out[0], 50);
    co_await comm.all_reduce(mine, out, {.reduction = Reduction::min});
    EXPECT_EQ(out[0], -30);
    co_await comm.all_reduce(mine, out, {.reduction = Reduction::average});
    EXPECT_EQ(out[0], 10);
  });
}

}  // namespace
}  // namespace shardproof
