// Collectives between virtual ranks: time, algbw and busbw by the definitions of nccl-tests, and the part of the
// memory's speed that they reach (of_limit). Every case is checked element by element before it is timed.
//
//   collectives_bench --benchmark_filter='all_reduce.*/16/'
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <vector>

#include "collectives/bandwidth.h"
#include "collectives/tbb_executor.h"
#include "collectives/world.h"

namespace {

using namespace shardproof;

void run(benchmark::State& state, const BandwidthCase& what) {
  TbbExecutor executor;
  BandwidthRow best;
  for (auto _ : state) {
    const BandwidthRow row = measure_bandwidth(executor, what, 0.3);
    state.SetIterationTime(row.seconds);
    if (row.wrong != 0) {
      state.SkipWithError(fmt::format("{} wrong elements", row.wrong).c_str());
      return;
    }
    best = row;
  }
  if (what.operation == Operation::barrier) {
    state.counters["ns_per_rank"] = best.seconds * 1e9 / what.ranks;
    return;
  }
  state.counters["algbw_GBps"] = best.algbw;
  state.counters["busbw_GBps"] = best.busbw;
  state.counters["of_limit"] = best.of_limit();
}

void add(const BandwidthCase& what) {
  const std::string name =
      fmt::format("{}/{}/{}/{}", to_string(what.operation), to_string(what.algorithm), what.ranks, what.bytes);
  benchmark::RegisterBenchmark(name.c_str(), [what](benchmark::State& state) { run(state, what); })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

// What an order costs over rank_order, measured in turns, so that a disturbance meets both.
void run_order_cost(benchmark::State& state, const BandwidthCase& what) {
  TbbExecutor executor;
  BandwidthCase plain = what;
  plain.algorithm = Algorithm::rank_order;
  for (auto _ : state) {
    double ordered_seconds = 1e9;
    double plain_seconds = 1e9;
    for (int turn = 0; turn < 8; ++turn) {
      ordered_seconds = std::min(ordered_seconds, measure_bandwidth(executor, what, 0.05).seconds);
      plain_seconds = std::min(plain_seconds, measure_bandwidth(executor, plain, 0.05).seconds);
    }
    state.SetIterationTime(ordered_seconds);
    state.counters["over_rank_order"] = ordered_seconds / plain_seconds;
  }
}

void add_order_cost(const BandwidthCase& what) {
  const std::string name = fmt::format("order_cost/{}/{}/{}", to_string(what.algorithm), what.ranks, what.bytes);
  benchmark::RegisterBenchmark(name.c_str(), [what](benchmark::State& state) { run_order_cost(state, what); })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

// Eight all_reduces, issued and then awaited, or one after another.
constexpr std::size_t kUnderWay = 8;

Task<> reduce_many(Communicator comm, std::size_t count, int times, bool issue) {
  const std::vector<float> in(count, 1);
  std::vector<std::vector<float>> out(kUnderWay, std::vector<float>(count));
  std::vector<CallHandle> handles(kUnderWay);
  for (int i = 0; i < times; ++i) {
    for (std::size_t k = 0; k < kUnderWay; ++k) {
      if (issue) {
        handles[k] = comm.iall_reduce(in, out[k]);
      } else {
        co_await comm.all_reduce(in, out[k]);
      }
    }
    for (std::size_t k = 0; k < kUnderWay && issue; ++k) co_await handles[k];
  }
  for (const std::vector<float>& values : out) {
    if (values != std::vector<float>(count, static_cast<float>(comm.size()))) throw std::runtime_error("a wrong sum");
  }
}

// What a handle costs: copies of input and output, and a lane of its own; measured in turns with the blocking calls.
void run_issue_cost(benchmark::State& state, int ranks, std::size_t bytes) {
  using Clock = std::chrono::steady_clock;
  TbbExecutor executor;
  World world(ranks, {.keep_records = false});
  std::vector<GlobalRank> members;
  for (int rank = 0; rank < ranks; ++rank) members.push_back(GlobalRank{rank});
  const GroupId group = world.add_group("world", members);
  const auto seconds = [&](bool issue, int times) {
    const Clock::time_point begin = Clock::now();
    world.run(executor, [&](GlobalRank rank) {
      return reduce_many(world.communicator(group, rank), bytes / sizeof(float), times, issue);
    });
    return std::chrono::duration<double>(Clock::now() - begin).count() / times / kUnderWay;
  };
  for (auto _ : state) {
    double issued = 1e9, blocking = 1e9;
    for (int turn = 0; turn < 20; ++turn) {
      issued = std::min(issued, seconds(true, 50));
      blocking = std::min(blocking, seconds(false, 50));
    }
    state.SetIterationTime(issued);
    state.counters["over_blocking"] = issued / blocking;
  }
}

void add_issue_cost(int ranks, std::size_t bytes) {
  const std::string name = fmt::format("issue_cost/all_reduce/{}/{}", ranks, bytes);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run_issue_cost(state, ranks, bytes); })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  for (const int ranks : {2, 16, 128, 1024, 16384}) add({.operation = Operation::barrier, .ranks = ranks});
  for (const Operation operation : {Operation::all_reduce, Operation::all_to_all, Operation::all_gather,
                                    Operation::reduce_scatter, Operation::broadcast}) {
    for (const std::size_t bytes : bandwidth_sizes()) add({.operation = operation, .ranks = 16, .bytes = bytes});
    add({.operation = operation, .ranks = 16, .bytes = 8 << 20});
  }
  for (const Algorithm algorithm : kAlgorithms) {
    for (const std::size_t bytes :
         {std::size_t{4} << 10, std::size_t{64} << 10, std::size_t{1} << 20, std::size_t{8} << 20}) {
      if (algorithm != Algorithm::rank_order) add_order_cost({.algorithm = algorithm, .ranks = 16, .bytes = bytes});
    }
  }
  for (const std::size_t bytes : {std::size_t{64}, std::size_t{4} << 10, std::size_t{256} << 10}) {
    add_issue_cost(16, bytes);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
