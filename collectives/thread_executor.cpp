#include "collectives/thread_executor.h"

#include <thread>
#include <vector>

#include "collectives/internal/work_queue.h"

namespace shardproof {

ThreadExecutor::ThreadExecutor(int threads)
    : threads_(threads < 1 ? 1 : threads),
      queue_(std::make_unique<internal::WorkQueue>(threads_, internal::WorkQueue::WhenIdle::wait)) {}
ThreadExecutor::~ThreadExecutor() = default;

void ThreadExecutor::post(Work work) {
  queue_->post(work);
}

void ThreadExecutor::run() {
  std::vector<std::thread> threads;
  for (int i = 1; i < threads_; ++i) {
    threads.emplace_back([this, i] { queue_->serve(static_cast<std::size_t>(i)); });
  }
  queue_->serve(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace shardproof
