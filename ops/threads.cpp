#include "ops/threads.h"

#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>

#include "ops/internal/parallel.h"

namespace shardproof::ops {

namespace {

thread_local int threads_of_this_thread = 1;

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
  tbb::task_arena arena(std::min(threads(), tbb::info::default_concurrency()));
  arena.execute([&] {
    tbb::this_task_arena::isolate([&] {
      tbb::parallel_for(Index{0}, parts, [&](Index part) {
        f(grains * part / parts * grain, std::min(grains * (part + 1) / parts * grain, count));
      });
    });
  });
}

}  // namespace shardproof::ops
