// Compiled without optimisation, where GCC makes no tail call of a transfer between coroutines: what must not grow the
// stack there does not grow it anywhere.
#include <gtest/gtest.h>

#include <atomic>

#include "collectives/default_executor.h"
#include "collectives/seeded_executor.h"
#include "collectives/task.h"
#include "collectives/world.h"

namespace shardproof {
namespace {

constexpr int kMany = 1'000'000;

Task<int> one() {
  co_return 1;
}
Task<int> two() {
  co_return co_await one() + co_await one();
}

TEST(TaskStack, IsNotGrownByALoopOverTasksThatNeverSuspend) {
  int sum = 0;
  const auto loop = [](int& out) -> Task<> {
    for (int i = 0; i < kMany; ++i) out += co_await two();
  };

  Task<> task = loop(sum);
  task.handle().resume();

  EXPECT_TRUE(task.done());
  EXPECT_EQ(sum, 2 * kMany);
}

Task<> meet(Communicator all) {
  co_await all.barrier();
}

/// Tasks that suspend, and are resumed elsewhere, in a loop on every rank.
void loop_over_barriers(Executor& executor, int times) {
  World world(4, {.keep_records = false});
  std::vector<GlobalRank> ranks;
  for (int rank = 0; rank < 4; ++rank) ranks.push_back(GlobalRank{rank});
  const GroupId all = world.add_group("world", ranks);
  std::atomic<int> met = 0;
  const World::Program program = [&](GlobalRank rank) -> Task<> {
    for (int i = 0; i < times; ++i) {
      co_await meet(world.communicator(all, rank));
      co_await two();
    }
    ++met;
  };

  world.run(executor, program);

  EXPECT_EQ(met, 4);
}

TEST(TaskStack, IsNotGrownByALoopOverTasksThatSuspend) {
  DefaultExecutor executor;
  loop_over_barriers(executor, 50000);
  SeededExecutor seeded(3);
  loop_over_barriers(seeded, 20000);
}

}  // namespace
}  // namespace shardproof
