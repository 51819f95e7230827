#include "collectives/tbb_executor.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

namespace shardproof {

namespace {

// A piece of work that several tasks take calls from, until none is left. Guided: large bites first, single calls last,
// so that few ranks wait behind a long one.
struct Batch {
  Batch(Work work_, std::size_t tasks_) : work(work_), tasks(tasks_) {}
  Work work;
  std::size_t tasks;
  std::atomic<std::size_t> next{0};

  void serve() noexcept {
    std::size_t begin = next.load(std::memory_order_relaxed);
    while (begin < work.count) {
      const std::size_t bite = std::max<std::size_t>(1, (work.count - begin) / (8 * tasks));
      if (!next.compare_exchange_weak(begin, begin + bite, std::memory_order_acq_rel, std::memory_order_relaxed)) {
        continue;
      }
      for (std::size_t i = begin; i < begin + bite; ++i) work.run(work.context, i);
      begin = next.load(std::memory_order_relaxed);
    }
  }
};

}  // namespace

struct TbbExecutor::State {
  explicit State(int threads_)
      : threads(threads_),
        limit(oneapi::tbb::global_control::max_allowed_parallelism,
              std::max<std::size_t>(
                  static_cast<std::size_t>(threads_),
                  oneapi::tbb::global_control::active_value(oneapi::tbb::global_control::max_allowed_parallelism))),
        arena(threads_) {}

  int threads;
  oneapi::tbb::global_control limit;
  oneapi::tbb::task_arena arena;
  oneapi::tbb::task_group group;
  bool running = false;
  std::vector<Work> waiting;  // posted before the run: a task belongs to the arena of the thread that makes it

  void start(Work work) {
    if (work.count == 0) return;
    if (work.count == 1) {
      group.run([work] { work.run(work.context, 0); });
      return;
    }
    const std::size_t tasks = std::min(work.count, static_cast<std::size_t>(threads));
    const auto batch = std::make_shared<Batch>(work, tasks);
    for (std::size_t i = 0; i < tasks; ++i) group.run([batch] { batch->serve(); });
  }
};

TbbExecutor::TbbExecutor(int threads) : state_(std::make_unique<State>(std::max(1, threads))) {}
TbbExecutor::~TbbExecutor() = default;

int TbbExecutor::threads() const {
  return state_->threads;
}

void TbbExecutor::post(Work work) {
  if (state_->running) {
    state_->start(work);
  } else {
    state_->waiting.push_back(work);
  }
}

void TbbExecutor::run() {
  state_->arena.execute([this] {
    state_->running = true;
    for (const Work work : state_->waiting) state_->start(work);
    state_->waiting.clear();
    state_->group.wait();
    state_->running = false;
  });
}

}  // namespace shardproof
