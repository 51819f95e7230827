#include "collectives/tbb_executor.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "collectives/internal/work_queue.h"

namespace shardproof {

struct TbbExecutor::State {
  explicit State(int threads_)
      : threads(threads_),
        queue(threads_, internal::WorkQueue::WhenIdle::leave),
        limit(oneapi::tbb::global_control::max_allowed_parallelism,
              std::max<std::size_t>(
                  static_cast<std::size_t>(threads_),
                  oneapi::tbb::global_control::active_value(oneapi::tbb::global_control::max_allowed_parallelism))),
        arena(threads_) {}

  int threads;
  internal::WorkQueue queue;
  oneapi::tbb::global_control limit;
  oneapi::tbb::task_arena arena;
  oneapi::tbb::task_group group;
  bool running = false;
  std::atomic<bool> broken = false;
  std::atomic<int> serving = 0;      // threads that are in the queue, or about to be
  std::size_t asked_before_run = 0;  // a task belongs to the arena of the thread that makes it

  // Tasks that leave when they are idle, so that their threads can help with parallel loops inside the ranks' work.
  void add_workers(std::size_t count) {
    for (; count > 0; --count) group.run([this] { serve(); });
  }
  void serve() {
    const int slot = oneapi::tbb::this_task_arena::current_thread_index();
    ++serving;
    if (!broken) queue.serve(static_cast<std::size_t>(std::max(0, slot)));
    --serving;
  }
};

TbbExecutor::TbbExecutor(int threads) : state_(std::make_unique<State>(std::max(1, threads))) {}
TbbExecutor::~TbbExecutor() {
  // oneTBB would wait for workers that it could not start.
  if (state_->broken) static_cast<void>(state_.release());  // NOLINT(bugprone-unused-return-value): left on purpose
}

int TbbExecutor::threads() const {
  return state_->threads;
}

void TbbExecutor::post(Work work) {
  const std::size_t asked = state_->queue.post(work);
  if (state_->running) {
    state_->add_workers(asked);
  } else {
    state_->asked_before_run += asked;
  }
}

void TbbExecutor::run() {
  try {
    state_->arena.execute([this] {
      state_->running = true;
      state_->add_workers(std::exchange(state_->asked_before_run, 0));
      state_->group.wait();
      state_->running = false;
    });
  } catch (...) {
    // No work of ours throws: a thread could not be made. Those that were are at work on what is about to go.
    state_->broken = true;
    while (state_->serving > 0) std::this_thread::yield();
    throw;
  }
}

}  // namespace shardproof
