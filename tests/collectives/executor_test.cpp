#include "collectives/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

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

TEST(SeededExecutor, ReplaysTheSameScheduleForTheSameSeed) {
  struct Log {
    std::vector<std::size_t> order;
  };
  const auto schedule = [](std::uint64_t seed) {
    Log log;
    SeededExecutor executor(seed);
    executor.post(
        {[](void* context, std::size_t i) noexcept { static_cast<Log*>(context)->order.push_back(i); }, &log, 64});
    executor.run();
    return log.order;
  };

  EXPECT_EQ(schedule(5), schedule(5));
  EXPECT_NE(schedule(5), schedule(6));
}

TEST(AvailableThreads, IsAtLeastOne) {
  EXPECT_GE(available_threads(), 1);
}

}  // namespace
}  // namespace shardproof
