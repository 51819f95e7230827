#include "ops/threads.h"

#if defined(__SANITIZE_THREAD__)
#include <atomic>
#include <thread>
#include <vector>
#else
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#endif

#include <algorithm>

#include "ops/internal/parallel.h"

namespace shardproof::ops {

namespace {

thread_local int threads_of_this_thread = 1;

#if defined(__SANITIZE_THREAD__)
// oneTBB is shipped without instrumentation: the sanitizer would see none of its hand-overs and call each one a race.
void share_out(Index parts, const std::function<void(Index)>& run_part) {
  std::atomic<Index> next = 0;
  const auto take = [&] {
    for (Index part = next++; part < parts; part = next++) run_part(part);
  };
  std::vector<std::jthread> helpers;
  for (int i = 1; i < threads(); ++i) helpers.emplace_back(take);
  take();
}
#else
void share_out(Index parts, const std::function<void(Index)>& run_part) {
  tbb::task_arena arena(std::min(threads(), tbb::info::default_concurrency()));
  arena.execute([&] { tbb::this_task_arena::isolate([&] { tbb::parallel_for(Index{0}, parts, run_part); }); });
}
#endif

}  // namespace

ThreadScope::ThreadScope(int threads) : before_(threads_of_this_thread) {
  threads_of_this_thread = std::max(threads, 1);
}
ThreadScope::~ThreadScope() {
  threads_of_this_thread = before_;
}

int threads() {
  return threads_of_this_thread;
}

void parallel_for(Index count, Index grain, const std::function<void(Index, Index)>& f) {
  const Index grains = (count + grain - 1) / grain;
  const Index parts = std::min<Index>(grains, Index{4} * threads());
  if (threads() < 2 || parts < 2) {
    if (count > 0) f(0, count);
    return;
  }
  share_out(parts, [&](Index part) {
    f(grains * part / parts * grain, std::min(grains * (part + 1) / parts * grain, count));
  });
}

}  // namespace shardproof::ops
