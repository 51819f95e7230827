#include "collectives/bandwidth.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>

#include "collectives/traffic.h"
#include "collectives/world.h"

namespace shardproof {

namespace {

using Clock = std::chrono::steady_clock;

// Small integers: every sum of them is exact, so that the results can be checked to the bit.
float value_at(int rank, std::size_t i) {
  return static_cast<float>((i + static_cast<std::size_t>(rank) * 5) % 7);
}

// Memory that begins at a cache line, as the allocators of tensor libraries give it.
template <class T>
struct Aligned {
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, kAlign); }
  };
  using Array = std::unique_ptr<T[], Free>;
  static Array make(std::size_t count) { return Array(static_cast<T*>(::operator new[](count * sizeof(T), kAlign))); }
};

struct Buffers {
  Aligned<float>::Array data;
  std::size_t in_count = 0;
  std::size_t out_count = 0;
  // Inputs and outputs begin at cache lines, a rank's at other cache sets than those of its neighbours.
  std::size_t out_begin = 0;
  std::size_t stride = 0;
  std::span<float> in(int rank) const { return {data.get() + static_cast<std::size_t>(rank) * stride, in_count}; }
  std::span<float> out(int rank) const {
    return {data.get() + static_cast<std::size_t>(rank) * stride + out_begin, out_count};
  }
};

Buffers make_buffers(const BandwidthCase& what) {
  const auto ranks = static_cast<std::size_t>(what.ranks);
  const std::size_t whole = what.bytes / sizeof(float) / ranks * ranks;
  Buffers buffers;
  buffers.in_count = what.operation == Operation::all_gather ? whole / ranks : whole;
  buffers.out_count = what.operation == Operation::reduce_scatter ? whole / ranks : whole;
  if (what.operation == Operation::barrier) buffers.in_count = buffers.out_count = 0;
  const auto lines = [](std::size_t count) { return (count + 15) / 16 * 16; };
  buffers.out_begin = lines(buffers.in_count);
  buffers.stride = buffers.out_begin + lines(buffers.out_count) + 16;
  buffers.data = Aligned<float>::make(buffers.stride * ranks);
  for (int rank = 0; rank < what.ranks; ++rank) {
    std::ranges::fill(buffers.out(rank), -1.0f);
    const std::span<float> in = buffers.in(rank);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = value_at(rank, i);
  }
  return buffers;
}

Task<> call(const BandwidthCase& what, const Buffers& buffers, Communicator comm, int times) {
  const std::span<const float> in = buffers.in(to_int(comm.rank()));
  const std::span<float> out = buffers.out(to_int(comm.rank()));
  const ReduceOptions reduce{.algorithm = what.algorithm, .gpus_per_node = what.gpus_per_node};
  const MoveOptions move{.algorithm = what.algorithm, .gpus_per_node = what.gpus_per_node};
  for (int i = 0; i < times; ++i) {
    switch (what.operation) {
      case Operation::all_reduce:
        co_await comm.all_reduce(in, out, reduce);
        break;
      case Operation::all_gather:
        co_await comm.all_gather(in, out, move);
        break;
      case Operation::reduce_scatter:
        co_await comm.reduce_scatter(in, out, reduce);
        break;
      case Operation::all_to_all:
        co_await comm.all_to_all(in, out, move);
        break;
      case Operation::broadcast:
        co_await comm.broadcast(to_int(comm.rank()) == 0 ? buffers.in(0) : out, GroupRank{0});
        break;
      case Operation::barrier:
        co_await comm.barrier();
        break;
      default:
        throw std::invalid_argument("no bandwidth is measured for this operation");
    }
  }
}

std::size_t count_wrong(const BandwidthCase& what, const Buffers& buffers) {
  std::size_t wrong = 0;
  const std::size_t part = buffers.in_count / static_cast<std::size_t>(what.ranks);
  std::vector<float> sum(
      what.operation == Operation::all_reduce || what.operation == Operation::reduce_scatter ? buffers.in_count : 0);
  for (int rank = 0; rank < what.ranks && !sum.empty(); ++rank) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += value_at(rank, i);
  }
  for (int rank = 0; rank < what.ranks; ++rank) {
    const std::span<float> out = buffers.out(rank);
    const std::size_t mine = static_cast<std::size_t>(rank) * part;
    for (std::size_t i = 0; i < out.size(); ++i) {
      float expected = 0;
      switch (what.operation) {
        case Operation::all_reduce:
          expected = sum[i];
          break;
        case Operation::reduce_scatter:
          expected = sum[mine + i];
          break;
        case Operation::all_gather:
          expected = value_at(static_cast<int>(i / buffers.in_count), i % buffers.in_count);
          break;
        case Operation::all_to_all:
          expected = value_at(static_cast<int>(i / part), mine + i % part);
          break;
        default:
          expected = rank == 0 ? out[i] : value_at(0, i);
      }
      wrong += out[i] != expected;
    }
  }
  return wrong;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Best seconds per call of many short repetitions that together take about the time given: on a machine with other
// work, a short one has a chance to run undisturbed. At least `times` calls each, so that starting them does not count.
template <class Run>
double best_time(double seconds, int times, const Run& run) {
  const Clock::time_point start = Clock::now();
  double best = 0;
  for (;; times *= 2) {
    const Clock::time_point begin = Clock::now();
    run(times);
    const double took = seconds_since(begin);
    best = took / times;
    if (took > 0.002) break;
  }
  while (seconds_since(start) < seconds) {
    const Clock::time_point begin = Clock::now();
    run(times);
    best = std::min(best, seconds_since(begin) / times);
  }
  return best;
}

// Half of the bytes moved are copied from one buffer to another, in as many parts as there are ranks.
struct Copies {
  Executor* executor;
  Aligned<char>::Array data;
  std::size_t part = 0;
  int ranks = 0;
  std::atomic<int> left{0};
  int rounds = 0;
  bool spread = false;

  static void copy_part(void* context, std::size_t index) noexcept {
    Copies& copies = *static_cast<Copies*>(context);
    char* from = copies.data.get() + 2 * index * copies.part;
    std::memcpy(from + copies.part, from, copies.part);
    if (copies.left.fetch_sub(1) == 1) copies.next_round();
  }
  void next_round() {
    if (rounds-- == 0) return;
    left = ranks;
    executor->post({copy_part, this, static_cast<std::size_t>(ranks), spread});
  }
};

void set_up(Copies& copies, Executor& executor, const BandwidthCase& what) {
  copies.executor = &executor;
  copies.ranks = what.ranks;
  copies.part = static_cast<std::size_t>(bytes_moved(what) / 2 / what.ranks);
  const std::size_t all = 2 * copies.part * static_cast<std::size_t>(what.ranks);
  copies.data = Aligned<char>::make(all);
  std::memset(copies.data.get(), 1, all);
}

// By all threads at once, or by one as long as that is faster.
double copy_seconds(Copies& copies, double seconds) {
  const auto with = [&](bool spread) {
    copies.spread = spread;
    return best_time(seconds / 2, 1, [&](int times) {
      copies.rounds = times;
      copies.next_round();
      copies.executor->run();
    });
  };
  return std::min(with(false), with(true));
}

}  // namespace

double bytes_moved(const BandwidthCase& what) {
  const double size = static_cast<double>(what.bytes);
  const double ranks = what.ranks;
  switch (what.operation) {
    case Operation::all_reduce:
    case Operation::all_to_all:
      return 2 * ranks * size;
    case Operation::all_gather:
    case Operation::reduce_scatter:
    case Operation::broadcast:
      return (ranks + 1) * size;
    default:
      return 0;
  }
}

BandwidthRow measure_bandwidth(Executor& executor, const BandwidthCase& what, double seconds) {
  if (what.ranks < 1) throw std::invalid_argument("a bandwidth is measured between at least one rank");
  const Buffers buffers = make_buffers(what);
  World world(what.ranks, {.keep_records = false});
  std::vector<GlobalRank> members;
  for (int rank = 0; rank < what.ranks; ++rank) members.push_back(GlobalRank{rank});
  const GroupId group = world.add_group("world", members);
  const auto run = [&](int times) {
    world.run(executor, [&](GlobalRank rank) { return call(what, buffers, world.communicator(group, rank), times); });
  };
  run(1);
  BandwidthRow row;
  row.what = what;
  row.wrong = count_wrong(what, buffers);
  if (what.operation == Operation::barrier) {
    row.seconds = best_time(seconds, 64, run);
    return row;
  }
  Copies copies;
  set_up(copies, executor, what);
  // In turns, so that a disturbance meets both.
  const int turns = std::clamp(static_cast<int>(seconds / 0.03), 1, 6);
  for (int turn = 0; turn < turns; ++turn) {
    const double call_seconds = best_time(seconds / turns, 1, run);
    const double limit_seconds = copy_seconds(copies, seconds / 2 / turns);
    row.seconds = turn == 0 ? call_seconds : std::min(row.seconds, call_seconds);
    row.limit_seconds = turn == 0 ? limit_seconds : std::min(row.limit_seconds, limit_seconds);
  }
  row.algbw = static_cast<double>(what.bytes) / row.seconds / 1e9;
  row.busbw = row.algbw * bus_bandwidth_factor(what.operation, what.ranks);
  return row;
}

std::vector<std::size_t> bandwidth_sizes() {
  std::vector<std::size_t> sizes;
  for (std::size_t size = 4096; size <= (16 << 20); size *= 4) sizes.push_back(size);
  return sizes;
}

std::string bandwidth_table(const std::vector<BandwidthRow>& rows) {
  std::string text =
      fmt::format("{:<15} {:<18} {:>6} {:>10} {:>10} {:>10} {:>12} {:>9} {:>9} {:>6} {:>6}\n", "# operation",
                  "algorithm", "ranks", "bytes", "elements", "type", "time (us)", "algbw", "busbw", "limit", "wrong");
  const auto out = std::back_inserter(text);
  for (const BandwidthRow& row : rows) {
    fmt::format_to(out, "{:<15} {:<18} {:>6} {:>10} {:>10} {:>10} {:>12.2f} {:>9.2f} {:>9.2f} {:>6.2f} {:>6}\n",
                   to_string(row.what.operation), to_string(row.what.algorithm), row.what.ranks, row.what.bytes,
                   row.what.bytes / sizeof(float), "float", row.seconds * 1e6, row.algbw, row.busbw, row.of_limit(),
                   row.wrong);
  }
  return text;
}

}  // namespace shardproof
