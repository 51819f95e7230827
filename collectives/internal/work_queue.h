// The queue behind the executors that have threads: which of them runs what next.
//
// Work is open until its last call has been taken. Each thread has a share of the calls, contiguous and always the same
// for work of the same size, and goes on with the others' when its own is done: a rank, and a slice of a movement,
// meets the caches that it left its data in. A thread takes the newest work first, for the same reason.
//
// Whoever posts begins with its work at once (where it was helping with spread work, whoever had posted that). Unless
// the work asks to be spread, the other threads leave it alone for a moment: a few calls that only lead from one
// collective to the next are over by then, and would be slower together, were it for the traffic between two caches
// alone. Long calls lose nothing by two microseconds.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/executor.h"

namespace shardproof::internal {

class WorkQueue {
 public:
  /// What a thread does when it finds nothing to take while others are still at work.
  enum class WhenIdle {
    leave,  ///< after a moment; a later post asks for it again
    wait    ///< it sleeps until there is something to do
  };
  WorkQueue(int threads, WhenIdle when_idle) : threads_(static_cast<std::size_t>(threads)), when_idle_(when_idle) {}

  /// Adds work. Returns how many threads should begin to serve because of it: with WhenIdle::wait none, as all serve
  /// from the beginning.
  std::size_t post(Work work);

  /// Runs calls until everything posted has run and no call is under way, or until there is nothing to do (see
  /// WhenIdle). `slot` numbers the threads, from 0.
  void serve(std::size_t slot);

 private:
  using Clock = std::chrono::steady_clock;

  // The calls [low half, high half). Its own thread takes the first, others the last: who comes to help leaves the
  // owner those that it will have next time too.
  struct Share {
    std::atomic<std::uint64_t> calls{0};
    char apart[120];  // no two on a cache line, nor on a pair of lines that is fetched together
  };
  struct Batch {
    Work work{};
    const void* poster = nullptr;
    Clock::time_point posted;
    std::size_t shares_used = 0;
    std::size_t shares_made = 0;
    std::unique_ptr<Share[]> shares;
    int users = 0;      // threads that run its calls; under the lock
    bool open = false;  // in open_; under the lock
  };
  class Lock;

  void prepare(Batch& batch, Work work);
  Batch* take(const void* me);
  static bool take_call(Share& share, bool own, std::size_t& index);
  void run_calls(Batch& batch, std::size_t slot);
  void put_back(Batch& batch);
  bool idle(std::uint32_t seen);

  std::size_t threads_;
  WhenIdle when_idle_;
  std::atomic<int> sleepers_{0};
  // What idle threads look at; apart from what the others work with, so that looking does not disturb. version_ changes
  // whenever there may be something new to do, or nothing any more; spread_posts_ with every spread work.
  alignas(64) std::atomic<std::uint32_t> version_{0};
  alignas(64) std::atomic<std::uint32_t> spread_posts_{0};
  alignas(64) std::atomic<bool> locked_{false};
  // Under the lock:
  std::vector<Batch*> open_;
  std::vector<std::unique_ptr<Batch>> batches_;
  std::vector<Batch*> unused_;
  std::size_t workers_ = 0;  // serve or have been asked to, with WhenIdle::leave
  std::size_t busy_ = 0;     // have taken work
};

}  // namespace shardproof::internal
