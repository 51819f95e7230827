#include "collectives/thread_executor.h"

#include <thread>
#include <vector>

namespace shardproof {

void ThreadExecutor::post(Work work) {
  if (work.count == 0) return;
  {
    const std::lock_guard lock(mutex_);
    items_.push_back({work, 0});
  }
  work.count == 1 ? changed_.notify_one() : changed_.notify_all();
}

void ThreadExecutor::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !items_.empty() || busy_ == 0; });
    if (items_.empty()) break;
    Item& item = items_.front();
    const Work work = item.work;
    const std::size_t index = item.next++;
    if (item.next == work.count) items_.pop_front();
    ++busy_;
    lock.unlock();
    work.run(work.context, index);
    lock.lock();
    --busy_;
  }
  // Nothing is queued and nobody runs who could queue more: the others may leave too.
  lock.unlock();
  changed_.notify_all();
}

void ThreadExecutor::run() {
  std::vector<std::thread> threads;
  for (int i = 1; i < threads_; ++i) threads.emplace_back([this] { serve(); });
  serve();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace shardproof
