// The default executor: a oneTBB task group in an arena of its own.
#pragma once

#include <memory>

#include "collectives/executor.h"

namespace shardproof {

/// Works with any number of threads, one included; more threads than the machine has are created when asked for.
class TbbExecutor final : public Executor {
 public:
  explicit TbbExecutor(int threads = available_threads());
  ~TbbExecutor() override;

  void post(Work work) override;
  void run() override;
  int threads() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shardproof
