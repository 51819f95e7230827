#include "collectives/task.h"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace shardproof {
namespace {

template <class T>
void run(Task<T>& task) {
  task.handle().resume();
}

Task<int> number(int value) {
  co_return value;
}
Task<> set(bool& flag) {
  flag = true;
  co_return;
}
Task<int> thrower() {
  throw std::runtime_error("inner");
  co_return 0;
}

TEST(Task, RunsOnlyWhenResumed) {
  bool ran = false;

  Task<> task = set(ran);

  EXPECT_FALSE(ran);
  run(task);
  EXPECT_TRUE(ran);
  EXPECT_TRUE(task.done());
}

TEST(Task, PassesValuesUpThroughNesting) {
  int result = 0;
  const auto outer = [](int& out) -> Task<> { out = co_await number(20) + co_await number(22); };

  Task<> task = outer(result);
  run(task);

  EXPECT_EQ(result, 42);
}

TEST(Task, MovesOutAValueThatCannotBeCopied) {
  std::unique_ptr<int> result;
  const auto make = []() -> Task<std::unique_ptr<int>> { co_return std::make_unique<int>(7); };
  const auto outer = [&make](std::unique_ptr<int>& out) -> Task<> { out = co_await make(); };

  Task<> task = outer(result);
  run(task);

  ASSERT_NE(result, nullptr);
  EXPECT_EQ(*result, 7);
}

TEST(Task, PassesExceptionsThroughEveryLevel) {
  std::string caught;
  const auto middle = []() -> Task<int> { co_return co_await thrower() + 1; };
  const auto outer = [&middle](std::string& out) -> Task<> {
    try {
      (void)co_await middle();
    } catch (const std::runtime_error& error) {
      out = error.what();
    }
  };

  Task<> task = outer(caught);
  run(task);

  EXPECT_EQ(caught, "inner");
  EXPECT_EQ(task.error(), nullptr);
}

TEST(Task, KeepsTheErrorOfATaskWithoutCaller) {
  Task<int> task = thrower();

  run(task);

  EXPECT_TRUE(task.done());
  EXPECT_THROW(std::rethrow_exception(task.error()), std::runtime_error);
}

TEST(Task, AwaitingInALoopDoesNotGrowTheStack) {
  long sum = 0;
  const auto outer = [](long& out) -> Task<> {
    for (int i = 0; i < 2'000'000; ++i) out += co_await number(1);
  };

  Task<> task = outer(sum);
  run(task);

  EXPECT_EQ(sum, 2'000'000);
}

TEST(Task, DestroyingASuspendedTaskDestroysWhatItAwaits) {
  struct Never {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    void await_resume() const noexcept {}
  };
  const auto owner = std::make_shared<int>(1);
  const auto inner = [](std::shared_ptr<int> held) -> Task<> {
    co_await Never{};
    (void)held;
  };
  const auto outer = [&inner](std::shared_ptr<int> held) -> Task<> { co_await inner(held); };

  {
    Task<> task = outer(owner);
    run(task);
    EXPECT_GT(owner.use_count(), 1);
  }

  EXPECT_EQ(owner.use_count(), 1);
}

}  // namespace
}  // namespace shardproof
