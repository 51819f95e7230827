#include "collectives/thread_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "collectives/errors.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using namespace std::chrono_literals;
using testing::all_ranks;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_input;
using testing::OneGroup;
using ::testing::SizeIs;

/// What a rank's thread runs; `wait` is ThreadRanks::await.
struct Caller {
  ThreadRanks& ranks;
  Communicator world;
  void wait(PendingCall&& call) const { ranks.await(world.global_rank(), std::move(call)); }
  CallHandle issue(PendingCall&& call) const { return ranks.issue(world.global_rank(), std::move(call)); }
  void wait(CallHandle& handle) const { ranks.await(world.global_rank(), handle); }
};
using Body = std::function<void(const Caller&)>;

/// A world each rank of which is a thread that runs `body` once a run.
class Threads {
 public:
  Threads(int size, Body body, std::chrono::nanoseconds patience = 60s)
      : ranks(size, patience), one(size), body_(std::move(body)) {
    for (int i = 0; i < size; ++i) threads_.emplace_back([this, i] { serve(GlobalRank{i}); });
  }
  ~Threads() {
    ranks.close();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(std::optional<std::uint64_t> schedule = {}, int threads = 2) {
    const auto executor = ranks.make_executor(threads, schedule);
    one.world.run(*executor, [this](GlobalRank rank) { return ranks.program(rank); });
  }

  ThreadRanks ranks;
  OneGroup one;
  std::atomic<int> dropped = 0;

 private:
  void serve(GlobalRank rank) {
    while (ranks.begin(rank)) {
      try {
        body_({ranks, one.world.communicator(one.all, rank)});
        ranks.end(rank);
      } catch (const RunOver&) {
        ++dropped;
        ranks.end(rank);
      } catch (...) {
        ranks.end(rank, std::current_exception());
      }
    }
  }

  Body body_;
  std::vector<std::thread> threads_;
};

class ThreadRanksOf : public ::testing::TestWithParam<int> {};

TEST_P(ThreadRanksOf, ReduceWhatCoroutinesReduce) {
  const int size = GetParam();
  constexpr std::size_t kCount = 100'003;
  std::vector<std::vector<double>> results(static_cast<std::size_t>(size));
  Threads threads(size, [&](const Caller& caller) {
    std::vector<double> values = make_input<double>(to_int(caller.world.rank()), kCount);
    for (int i = 0; i < 3; ++i) caller.wait(caller.world.all_reduce(values, {.algorithm = Algorithm::ring}));
    results[testing::index(caller.world.rank())] = values;
  });
  std::vector<double> expected;
  OneGroup coroutines(size);
  coroutines.run([&](Communicator world) -> Task<> {
    std::vector<double> values = make_input<double>(to_int(world.rank()), kCount);
    for (int i = 0; i < 3; ++i) co_await world.all_reduce(values, {.algorithm = Algorithm::ring});
    if (to_int(world.rank()) == 0) expected = values;
  });

  threads.run();

  for (const std::vector<double>& values : results) EXPECT_EQ(values, expected);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadRanksOf, ::testing::Values(1, 2, 7, 16));

TEST(ThreadRanks, WaitForWhatTheyIssuedInAnyOrder) {
  std::vector<std::vector<int>> results(3);
  Threads threads(3, [&](const Caller& caller) {
    const int rank = to_int(caller.world.rank());
    std::vector<int> sum{rank, 1}, gathered(3);
    const std::vector<int> own{rank};
    CallHandle first = caller.issue(caller.world.all_reduce(sum));
    CallHandle second = caller.issue(caller.world.all_gather(std::span(own), gathered));
    caller.wait(rank == 0 ? first : second);
    caller.wait(rank == 0 ? second : first);
    sum.insert(sum.end(), gathered.begin(), gathered.end());
    results[testing::index(caller.world.rank())] = sum;
  });

  for (const std::optional<std::uint64_t> schedule : {std::optional<std::uint64_t>(), {1}, {2}, {3}}) {
    threads.run(schedule);

    for (const std::vector<int>& result : results) EXPECT_THAT(result, ElementsAre(3, 3, 0, 1, 2));
  }
}

TEST(ThreadRanks, ThrowInTheirOwnThreadWhatAwaitingRefuses) {
  std::atomic<int> refused = 0;
  Threads threads(2, [&](const Caller& caller) {
    std::vector<float> values{1, 2};
    CallHandle sum = caller.issue(caller.world.all_reduce(values));
    values[1] = 3;
    try {
      caller.wait(sum);
    } catch (const InvalidCall& error) {
      EXPECT_THAT(error.what(), HasSubstr("its input was written between issue and await"));
      ++refused;
    }
  });

  threads.run();

  EXPECT_EQ(refused, 2);
}

TEST(ThreadRanks, ProveTheDeadlockOfAnIssuedCall) {
  Threads threads(2, [&](const Caller& caller) {
    std::vector<float> values{1, 2};
    CallHandle sum = caller.issue(caller.world.all_reduce(values));
    caller.wait(sum);
    if (to_int(caller.world.rank()) == 0) caller.wait(caller.world.barrier());
  });

  for (const std::optional<std::uint64_t> schedule : {std::optional<std::uint64_t>(), {7}}) {
    EXPECT_THROW(threads.run(schedule), DeadlockError);
  }
}

TEST(ThreadRanks, AreOutsideOnlyWhereTheyWaitInNoCallAtAll) {
  std::latch release(1);
  Threads threads(
      3,
      [&](const Caller& caller) {
        std::vector<float> values{1, 2};
        const int rank = to_int(caller.world.rank());
        if (rank == 0) return release.wait();
        if (rank == 1) caller.ranks.issue_and_await(caller.world.global_rank(), caller.world.all_reduce(values));
        if (rank == 2) caller.wait(caller.world.recv(values, GroupRank{0}));
      },
      100ms);

  try {
    threads.run();
    ADD_FAILURE() << "it came to an end";
  } catch (const NoProgressError& error) {
    EXPECT_THAT(error.outside(), ElementsAre(GlobalRank{0}));
  } catch (const std::exception& other) {
    ADD_FAILURE() << other.what();
  }
  release.count_down();
}

TEST(ThreadRanks, TakeTheUntypedCallForTheTypedOne) {
  std::vector<float> results(4);
  Threads threads(2, [&](const Caller& caller) {
    const std::vector<float> in{1, 2, 3, static_cast<float>(to_int(caller.world.rank()))};
    const auto half = std::span(results).subspan(2 * testing::index(caller.world.rank()), 2);
    caller.wait(caller.world.call({.operation = Operation::reduce_scatter,
                                   .type = ElementType::f32,
                                   .in = in.data(),
                                   .in_count = in.size(),
                                   .out = half.data(),
                                   .out_count = half.size()}));
  });

  threads.run();

  EXPECT_THAT(results, ElementsAre(2, 4, 6, 1));
}

TEST(ThreadRanks, PassMessages) {
  int received = 0;
  Threads threads(2, [&](const Caller& caller) {
    std::vector<int> value{42};
    if (to_int(caller.world.rank()) == 0) return caller.wait(caller.world.send(value, GroupRank{1}));
    value[0] = 0;
    caller.wait(caller.world.recv(value, GroupRank{0}));
    received = value[0];
  });

  threads.run();

  EXPECT_EQ(received, 42);
}

/// The order in which ranks reach each of three barriers.
std::vector<int> order_of_threads(std::uint64_t seed) {
  std::vector<int> order;
  Threads threads(5, [&](const Caller& caller) {
    for (int i = 0; i < 3; ++i) {
      order.push_back(to_int(caller.world.rank()));
      caller.wait(caller.world.barrier());
    }
  });
  threads.run(seed);
  return order;
}

std::vector<int> order_of_coroutines(std::uint64_t seed) {
  std::vector<int> order;
  OneGroup one(5);
  SeededExecutor executor(seed);
  one.run(executor, [&](Communicator world) -> Task<> {
    for (int i = 0; i < 3; ++i) {
      order.push_back(to_int(world.rank()));
      co_await world.barrier();
    }
  });
  return order;
}

TEST(ThreadRanks, FollowTheScheduleThatCoroutinesFollowUnderASeed) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) EXPECT_EQ(order_of_threads(seed), order_of_coroutines(seed));

  EXPECT_NE(order_of_threads(1), order_of_threads(2));
}

TEST(ThreadRanks, ThatWaitForEverAreADeadlockWhichNamesThem) {
  for (const std::optional<std::uint64_t> schedule : {std::optional<std::uint64_t>{}, {7}}) {
    Threads threads(3, [&](const Caller& caller) {
      if (to_int(caller.world.rank()) != 1) caller.wait(caller.world.barrier());
    });

    try {
      threads.run(schedule);
      FAIL() << "no deadlock";
    } catch (const DeadlockError& error) {
      ASSERT_THAT(error.graph().rendezvous, SizeIs(1));
      EXPECT_THAT(error.graph().rendezvous[0].arrived, SizeIs(2));
      EXPECT_EQ(error.graph().rendezvous[0].absent[0].why, Absence::finished);
      EXPECT_THAT(error.what(), HasSubstr("thread_ranks_test.cpp"));
    }
    while (threads.dropped < 2) std::this_thread::yield();
  }
}

TEST(ThreadRanks, RunAgainAfterADeadlock) {
  std::atomic<int> runs = 0;
  Threads threads(2, [&](const Caller& caller) {
    if (runs > 0 || to_int(caller.world.rank()) == 0) caller.wait(caller.world.barrier());
  });
  EXPECT_THROW(threads.run(), DeadlockError);
  runs = 1;

  EXPECT_NO_THROW(threads.run());
  EXPECT_NO_THROW(threads.run(3));
}

TEST(ThreadRanks, WhoseCallsDoNotMatchAreSaidToMismatch) {
  Threads threads(2, [&](const Caller& caller) {
    std::vector<float> values(to_int(caller.world.rank()) == 0 ? 3 : 4);
    caller.wait(caller.world.all_reduce(values));
  });

  EXPECT_THROW(threads.run(), CollectiveMismatch);
}

TEST(ThreadRanks, EndTheRunWithWhatOneOfThemThrows) {
  Threads threads(3, [&](const Caller& caller) {
    if (to_int(caller.world.rank()) == 2) throw std::runtime_error("out of luck");
    caller.wait(caller.world.barrier());
  });

  try {
    threads.run();
    FAIL() << "no error";
  } catch (const RankError& error) {
    EXPECT_EQ(error.rank(), GlobalRank{2});
    EXPECT_THAT(error.what(), HasSubstr("out of luck"));
  }
}

TEST(ThreadRanks, OneOfWhichStaysOutsideMakeNoProgressAndProveNothing) {
  for (const std::optional<std::uint64_t> schedule : {std::optional<std::uint64_t>{}, {7}}) {
    std::latch released(1);
    std::atomic<bool> refused = false;
    Threads threads(
        3,
        [&](const Caller& caller) {
          if (to_int(caller.world.rank()) == 1) {
            released.wait();
            refused = true;
            caller.wait(caller.world.barrier());  // the run is over: throws
            refused = false;
          }
          caller.wait(caller.world.barrier());
        },
        20ms);

    try {
      threads.run(schedule);
      ADD_FAILURE() << "the run ended";
    } catch (const NoProgressError& error) {
      EXPECT_THAT(error.outside(), ::testing::Contains(GlobalRank{1}));
    }
    released.count_down();
    threads.ranks.close();
    while (!refused) std::this_thread::yield();
  }
}

TEST(ThreadRanks, AreWaitedForAsLongAsSomethingOfTheRunGoesOn) {
  Threads threads(
      2,
      [&](const Caller& caller) {
        const ThreadRanks::Inside inside(caller.ranks, caller.world.global_rank());
        std::this_thread::sleep_for(60ms);
      },
      10ms);

  EXPECT_NO_THROW(threads.run());
  EXPECT_NO_THROW(threads.run(1));
}

TEST(ThreadRanks, EndTheRunWhenTheyAreInterrupted) {
  std::latch arrived(1);
  std::latch released(1);
  Threads threads(2, [&](const Caller& caller) {
    if (to_int(caller.world.rank()) == 0) return caller.wait(caller.world.barrier());
    arrived.count_down();
    released.wait();
  });
  std::thread interrupter([&] {
    arrived.wait();
    threads.ranks.interrupt();
  });

  EXPECT_THROW(threads.run(), NoProgressError);

  released.count_down();
  interrupter.join();
}

TEST(ThreadRanks, LetNobodyInsideOutsideOfARun) {
  ThreadRanks ranks(1, 60s);

  EXPECT_THROW(ThreadRanks::Inside(ranks, GlobalRank{0}), RunOver);
}

}  // namespace
}  // namespace shardproof
