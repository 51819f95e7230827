// A plain pool of threads over one locked queue: for the thread sanitizer, and as a baseline.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>

#include "collectives/executor.h"

namespace shardproof {

class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int threads = available_threads()) : threads_(threads < 1 ? 1 : threads) {}

  void post(Work work) override;
  void run() override;
  int threads() const override { return threads_; }

 private:
  struct Item {
    Work work;
    std::size_t next;
  };
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  int busy_ = 0;
  int threads_;
};

}  // namespace shardproof
