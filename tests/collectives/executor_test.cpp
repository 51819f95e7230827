#include "collectives/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "collectives/make_executor.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

struct Counter {
  Executor* executor = nullptr;
  std::atomic<int> calls{0};
  std::vector<std::atomic<int>> seen = std::vector<std::atomic<int>>(1000);
};

void count(void* context, std::size_t index) noexcept {
  auto& counter = *static_cast<Counter*>(context);
  counter.seen[index].fetch_add(1);
  counter.calls.fetch_add(1);
}

void count_and_post(void* context, std::size_t) noexcept {
  auto& counter = *static_cast<Counter*>(context);
  counter.calls.fetch_add(1);
  counter.executor->post({count, context, 10});
}

class AnyExecutor : public ::testing::TestWithParam<std::function<std::unique_ptr<Executor>()>> {};

TEST_P(AnyExecutor, RunsEveryCallOfAPieceOfWorkOnce) {
  const auto executor = GetParam()();
  Counter counter;

  executor->post({count, &counter, 1000});
  executor->run();

  EXPECT_EQ(counter.calls, 1000);
  for (const auto& seen : counter.seen) EXPECT_EQ(seen, 1);
}

TEST_P(AnyExecutor, RunsWhatIsPostedDuringTheRunBeforeItReturns) {
  const auto executor = GetParam()();
  Counter counter;
  counter.executor = executor.get();

  executor->post({count_and_post, &counter, 50});
  executor->run();

  EXPECT_EQ(counter.calls, 50 + 50 * 10);
}

// A tree of work: every call posts two more until the depth is reached, now and then asking for them to be spread.
struct Tree {
  Executor* executor = nullptr;
  std::atomic<int> calls{0};
};
constexpr int kDepth = 12;

template <int Depth>
void grow_at(void* context, std::size_t) noexcept {
  auto& tree = *static_cast<Tree*>(context);
  tree.calls.fetch_add(1);
  if constexpr (Depth < kDepth) tree.executor->post({grow_at<Depth + 1>, context, 2, Depth % 3 == 0});
}

TEST_P(AnyExecutor, RunsAWholeTreeOfWorkHoweverItIsPosted) {
  const auto executor = GetParam()();
  Tree tree;
  tree.executor = executor.get();

  for (int run = 0; run < 20; ++run) {
    tree.calls = 0;
    executor->post({grow_at<0>, &tree, 3});
    executor->run();

    EXPECT_EQ(tree.calls, 3 * ((1 << (kDepth + 1)) - 1));
  }
}

TEST_P(AnyExecutor, ReturnsAtOnceWhenThereIsNothing) {
  const auto executor = GetParam()();

  executor->post({count, nullptr, 0});
  executor->run();

  EXPECT_GE(executor->threads(), 1);
}

TEST_P(AnyExecutor, RunsAgain) {
  const auto executor = GetParam()();
  Counter counter;

  for (int i = 0; i < 3; ++i) {
    executor->post({count, &counter, 5});
    executor->run();
  }

  EXPECT_EQ(counter.calls, 15);
}

INSTANTIATE_TEST_SUITE_P(Seeded, AnyExecutor, ::testing::Values([] { return std::make_unique<SeededExecutor>(1); }));
INSTANTIATE_TEST_SUITE_P(Threads, AnyExecutor,
                         ::testing::Values([] { return std::make_unique<ThreadExecutor>(1); },
                                           [] { return std::make_unique<ThreadExecutor>(3); }));
#if !defined(__SANITIZE_THREAD__)
INSTANTIATE_TEST_SUITE_P(Tbb, AnyExecutor,
                         ::testing::Values([] { return std::make_unique<TbbExecutor>(1); },
                                           [] { return std::make_unique<TbbExecutor>(2); },
                                           [] { return std::make_unique<TbbExecutor>(7); }));
#endif

struct Pair {
  std::atomic<int> begun{0};
  std::atomic<bool> both{false};
};

// Stands for a long call: the first to begin goes on until the second has begun too, for ten seconds at most.
void wait_for_the_other(void* context, std::size_t) noexcept {
  auto& pair = *static_cast<Pair*>(context);
  pair.begun.fetch_add(1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (pair.begun < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  if (pair.begun == 2) pair.both = true;
}

struct PairPoster {
  Executor* executor = nullptr;
  Pair pair;
  bool spread = false;
};

TEST(ThreadedExecutors, ShareLongCallsWhetherToldToOrNot) {
  std::vector<std::unique_ptr<Executor>> executors;
  executors.push_back(std::make_unique<ThreadExecutor>(2));
#if !defined(__SANITIZE_THREAD__)
  executors.push_back(std::make_unique<TbbExecutor>(2));
#endif
  for (const auto& executor : executors) {
    for (const bool spread : {false, true}) {
      // Posted from a call: then it is its poster's own at first.
      PairPoster poster{executor.get(), {}, spread};
      executor->post({[](void* context, std::size_t) noexcept {
                        auto& p = *static_cast<PairPoster*>(context);
                        p.executor->post({wait_for_the_other, &p.pair, 2, p.spread});
                      },
                      &poster, 1});
      executor->run();

      EXPECT_TRUE(poster.pair.both) << spread;
    }
  }
}

std::vector<std::size_t> order_on(Executor& executor) {
  std::vector<std::size_t> order;
  executor.post(
      {[](void* context, std::size_t i) noexcept { static_cast<std::vector<std::size_t>*>(context)->push_back(i); },
       &order, 64});
  executor.run();
  return order;
}

TEST(SeededExecutor, ReplaysTheSameScheduleForTheSameSeed) {
  const auto schedule = [](std::uint64_t seed) {
    SeededExecutor executor(seed);
    return order_on(executor);
  };

  EXPECT_EQ(schedule(5), schedule(5));
  EXPECT_NE(schedule(5), schedule(6));
}

TEST(MakeExecutor, HasTheThreadsThatAreAskedFor) {
  EXPECT_EQ(make_executor(3)->threads(), 3);
  EXPECT_EQ(make_executor(0)->threads(), available_threads());
}

TEST(MakeExecutor, RunsAScheduleInTheOrderOfItsSeedWhateverTheThreads) {
  SeededExecutor seeded(5);

  const std::vector<std::size_t> order = order_on(*make_executor(3, 5));

  EXPECT_EQ(order, order_on(seeded));
}

TEST(AvailableThreads, IsAtLeastOne) {
  EXPECT_GE(available_threads(), 1);
}

}  // namespace
}  // namespace shardproof
