// Plain threads, started for each run: for the thread sanitizer, which sees all of their queue, and as a baseline.
#pragma once

#include <memory>

#include "collectives/executor.h"

namespace shardproof {

namespace internal {
class WorkQueue;
}

class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int threads = available_threads());
  ~ThreadExecutor() override;

  void post(Work work) override;
  void run() override;
  int threads() const override { return threads_; }

 private:
  int threads_;
  std::unique_ptr<internal::WorkQueue> queue_;
};

}  // namespace shardproof
