// Who runs the coroutines: post what is ready, then run until nothing is ready any more.
#pragma once

#include <cstddef>

namespace shardproof {

/// `count` independent calls run(context, 0), ..., run(context, count - 1), in any order, on any thread. The context
/// must live until the last call has begun. A call may post further work; it must not throw and must not wait for
/// others. `spread` says that the calls are known to be worth the trouble of other threads; where it is not set, they
/// may be as short as the wait for another thread.
struct Work {
  void (*run)(void* context, std::size_t index) noexcept;
  void* context;
  std::size_t count;
  bool spread = false;
};

/// Runs work on a number of threads. Quiescence (run() returns) means: everything posted has run, and nothing runs that
/// could post more. That is what a proof of deadlock reads, so an implementation must neither lose work nor return
/// early.
class Executor {
 public:
  Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  /// From run()'s caller before the run, and from any work during it.
  virtual void post(Work work) = 0;
  /// Runs everything posted, until quiescence.
  virtual void run() = 0;
  virtual int threads() const = 0;
  /// Of the last run(): false where it gave up waiting for work outside of it, so that it proves nothing of ranks that
  /// have not finished.
  virtual bool conclusive() const { return true; }
};

/// The threads that this process may really use: the CPUs of its affinity mask, capped by the cgroup's CPU quota (v1
/// and v2, rounded up), at least 1.
int available_threads();

}  // namespace shardproof
