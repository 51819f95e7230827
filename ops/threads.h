// Several threads for the ops called from one thread, for when ranks are fewer than cores.
//
// Ops run on the calling thread alone unless a ThreadScope says otherwise; results are the same bits either way, since
// threads share out whole elements and never a sum. The scope is the calling thread's: open it around the calls to ops,
// and never hold it across a co_await. Workers are oneTBB's; while it waits the thread takes no other task.
#pragma once

namespace shardproof::ops {

class ThreadScope {
 public:
  /// threads < 2 means the calling thread alone.
  explicit ThreadScope(int threads);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

/// Threads that an op called here may use.
int threads();

}  // namespace shardproof::ops
