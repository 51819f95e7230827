// One thread that picks what runs next by a seeded generator: the same seed replays the same schedule.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/executor.h"

namespace shardproof {

/// Every ready call is as likely to be next as any other. `pretended_threads` is what threads() answers, so that the
/// code paths that split large movements into parallel pieces are explored too.
class SeededExecutor final : public Executor {
 public:
  explicit SeededExecutor(std::uint64_t seed, int pretended_threads = 2)
      : state_(seed), pretended_threads_(pretended_threads) {}

  void post(Work work) override;
  void run() override;
  int threads() const override { return pretended_threads_; }

 private:
  struct Ready {
    void (*run)(void* context, std::size_t index) noexcept;
    void* context;
    std::size_t index;
  };
  std::uint64_t next();

  std::vector<Ready> ready_;
  std::uint64_t state_;
  int pretended_threads_;
};

}  // namespace shardproof
