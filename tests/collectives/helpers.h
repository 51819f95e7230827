// Shared by the tests of this folder: worlds with one group, programs written as lambdas, exact data.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "collectives/default_executor.h"
#include "collectives/seeded_executor.h"
#include "collectives/tbb_executor.h"
#include "collectives/thread_executor.h"
#include "collectives/world.h"

namespace shardproof::testing {

inline std::vector<GlobalRank> all_ranks(int size) {
  std::vector<GlobalRank> ranks;
  for (int i = 0; i < size; ++i) ranks.push_back(GlobalRank{i});
  return ranks;
}

/// A world whose ranks are all in the group "world[0]".
struct OneGroup {
  explicit OneGroup(int size, WorldOptions options = {})
      : world(size, options), all(world.add_group("world", all_ranks(size))) {}

  /// `program` is a coroutine lambda; it lives here while the ranks run.
  void run(Executor& executor, const std::function<Task<>(Communicator)>& program) {
    world.run(executor, [&](GlobalRank rank) { return program(world.communicator(all, rank)); });
  }
  void run(const std::function<Task<>(Communicator)>& program) {
    DefaultExecutor executor(2);
    run(executor, program);
  }

  World world;
  GroupId all;
};

/// A small integer that depends on rank and position, so that every sum of them is exact.
template <class T>
T value_at(int rank, std::size_t i) {
  return static_cast<T>((static_cast<std::size_t>(rank) * 7 + i * 3) % 11);
}

template <class T>
std::vector<T> make_input(int rank, std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = value_at<T>(rank, i);
  return values;
}

inline std::size_t index(GroupRank rank) {
  return static_cast<std::size_t>(to_int(rank));
}

}  // namespace shardproof::testing
