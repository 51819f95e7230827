// Ranks whose programs are ordinary threads that block in their calls: for code that is no coroutine, in any language.
//
// Each such thread stands behind a coroutine, which World::run runs as any other rank's program: what the thread calls,
// the coroutine awaits. So calls are matched, moved and diagnosed exactly as those of coroutines are.
//
//   ThreadRanks ranks(2, std::chrono::seconds(60));
//   std::thread thread([&] {                                        // of rank 0; rank 1 likewise
//     while (ranks.begin(GlobalRank{0})) {
//       try {
//         ranks.await(GlobalRank{0}, tp.all_reduce(y));             // blocks
//         ranks.end(GlobalRank{0});
//       } catch (...) {
//         ranks.end(GlobalRank{0}, std::current_exception());
//       }
//     }
//   });
//   const std::unique_ptr<Executor> executor = ranks.make_executor(0);
//   world.run(*executor, [&](GlobalRank rank) { return ranks.program(rank); });
//   ranks.close();
//
// Without a schedule the threads run as the system lets them, and those that wait do each other's movements. Under the
// schedule of a seed one rank runs at a time, up to its next call: the interleaving is that of coroutines under the
// same seed.
//
// A deadlock is proven when every rank waits in await() or has ended. Where one runs code of its own and nothing is
// called or returns for as long as `patience`, the run is given up (NoProgressError): the thread may be waiting there
// for ever, or be slow, and cannot be stopped from outside; it throws RunOver from its next call.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "collectives/call.h"
#include "collectives/call_handle.h"
#include "collectives/executor.h"
#include "collectives/rank.h"
#include "collectives/task.h"

namespace shardproof {

/// What a thread's call throws when the run that it was part of has ended without it: to be let through to end().
class RunOver : public std::runtime_error {
 public:
  RunOver() : std::runtime_error("the run is over") {}
};

class ThreadRanks {
 public:
  ThreadRanks(int ranks, std::chrono::nanoseconds patience);
  ~ThreadRanks();
  ThreadRanks(const ThreadRanks&) = delete;
  ThreadRanks& operator=(const ThreadRanks&) = delete;

  /// For one run. `threads` of 0: as many as the process may use; the ranks' own come on top. With a schedule: one rank
  /// at a time, in the order of that seed.
  std::unique_ptr<Executor> make_executor(int threads, std::optional<std::uint64_t> schedule = {});
  /// What the rank is to World::run; ends with what its thread gives to end().
  Task<> program(GlobalRank rank);
  /// From any thread: gives the current run up, now.
  void interrupt();
  /// No more runs: begin() returns false from now on.
  void close();

  /// From the rank's own thread, as all below. Waits for the next run; false: there is none.
  bool begin(GlobalRank rank);
  /// Blocks until the call is complete. Throws RunOver.
  void await(GlobalRank rank, PendingCall&& call);
  /// Issues the call and goes on; the handle is awaited later. Throws RunOver.
  CallHandle issue(GlobalRank rank, PendingCall&& call);
  /// Both at once: what others only issue here is blocked for.
  void issue_and_await(GlobalRank rank, PendingCall&& call);
  /// Blocks until the issued call is complete. Throws RunOver, and what co_await of the handle throws.
  void await(GlobalRank rank, CallHandle& handle);
  /// The rank's program has returned, or thrown `error`. What ended with RunOver is not the rank's error.
  void end(GlobalRank rank, std::exception_ptr error = nullptr);

  /// While it lives, the run does not end: for what a rank does with it beside its calls.
  class Inside {
   public:
    /// Throws RunOver.
    Inside(ThreadRanks& ranks, GlobalRank rank);
    ~Inside();
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    ThreadRanks& ranks_;
  };

 private:
  struct Run;
  struct Thread;
  struct Request;
  struct Next;
  struct Drop;
  class FreeExecutor;
  class ScheduledExecutor;

  using Lock = std::unique_lock<std::mutex>;

  Thread& thread(GlobalRank rank) { return *threads_[static_cast<std::size_t>(to_int(rank))]; }
  static Task<> serve(ThreadRanks* ranks, Thread* thread);
  bool takes_part(const Thread& thread) const;
  void enter(const Thread& thread);
  void leave();
  void go_on(Thread& thread, Lock& lock);
  void ask(GlobalRank rank, Request& request);
  void work_off(Lock& lock);
  void tell_if_quiet();
  bool hand_over(Thread& thread);

  std::mutex mutex_;  // of all below, and of what they point to
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::chrono::nanoseconds patience_;
  std::unique_ptr<Run> run_;  // the current one
  std::uint64_t runs_ = 0;
  bool interrupted_ = false;
  bool closed_ = false;
};

}  // namespace shardproof
