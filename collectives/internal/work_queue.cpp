#include "collectives/internal/work_queue.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <thread>
#include <utility>

namespace shardproof::internal {

namespace {

// How long other threads leave work alone that does not ask to be spread.
constexpr std::chrono::microseconds kAlone{2};
constexpr std::chrono::microseconds kLongestAlone{8};
// How many looks an idle thread takes before it leaves or sleeps: some tens of microseconds.
constexpr int kLooks = 500;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Which queue this thread serves: null outside serve(). Its address stands for the thread.
thread_local const WorkQueue* serving = nullptr;
// Whose the work is that a call posts on this thread.
thread_local const void* posting_for = nullptr;

}  // namespace

// Held for some tens of nanoseconds, so that nobody needs to sleep for it.
class WorkQueue::Lock {
 public:
  explicit Lock(WorkQueue& queue) : queue_(queue) { lock(); }
  ~Lock() { unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  void lock() {
    for (int tries = 0; queue_.locked_.exchange(true, std::memory_order_acquire); ++tries) {
      while (queue_.locked_.load(std::memory_order_relaxed)) {
        if (++tries < 100) {
          pause();
        } else {
          std::this_thread::yield();  // its holder has been put aside
        }
      }
    }
  }
  void unlock() { queue_.locked_.store(false, std::memory_order_release); }

 private:
  WorkQueue& queue_;
};

void WorkQueue::prepare(Batch& batch, Work work) {
  batch.work = work;
  batch.poster = serving == this ? posting_for : nullptr;
  // A single thread has nobody to be left alone by.
  if (!work.spread && threads_ > 1) batch.posted = Clock::now();
  batch.shares_used = std::min(work.count, threads_);
  if (batch.shares_made < batch.shares_used) {
    batch.shares = std::make_unique<Share[]>(batch.shares_used);
    batch.shares_made = batch.shares_used;
  }
  for (std::size_t i = 0; i < batch.shares_used; ++i) {
    const std::uint64_t begin = work.count * i / batch.shares_used;
    const std::uint64_t end = work.count * (i + 1) / batch.shares_used;
    batch.shares[i].calls.store(begin | end << 32, std::memory_order_relaxed);
  }
}

std::size_t WorkQueue::post(Work work) {
  if (work.count == 0) return 0;
  assert(work.count <= std::numeric_limits<std::uint32_t>::max());  // ranks of a world, or pieces of a movement
  std::size_t start = 0;
  {
    Lock lock(*this);
    if (unused_.empty()) {
      batches_.push_back(std::make_unique<Batch>());
      unused_.push_back(batches_.back().get());
    }
    Batch& batch = *unused_.back();
    unused_.pop_back();
    prepare(batch, work);
    batch.open = true;
    open_.push_back(&batch);
    if (when_idle_ == WhenIdle::leave) {
      start = std::min(work.count, threads_ - workers_);
      workers_ += start;
    }
    version_.fetch_add(1);
  }
  if (work.spread) spread_posts_.fetch_add(1, std::memory_order_relaxed);
  if (sleepers_.load() > 0) version_.notify_all();
  return start;
}

// The newest work that `me` may begin with; null if there is none. Under the lock.
WorkQueue::Batch* WorkQueue::take(const void* me) {
  for (auto batch = open_.rbegin(); batch != open_.rend(); ++batch) {
    const bool alone = !(*batch)->work.spread && (*batch)->poster != nullptr && (*batch)->poster != me;
    if (alone && Clock::now() < (*batch)->posted + kAlone) continue;
    ++(*batch)->users;
    ++busy_;
    return *batch;
  }
  return nullptr;
}

// False: none is left.
bool WorkQueue::take_call(Share& share, bool own, std::size_t& index) {
  std::uint64_t calls = share.calls.load(std::memory_order_relaxed);
  for (;;) {
    const std::uint64_t begin = calls & 0xffffffffu;
    const std::uint64_t end = calls >> 32;
    if (begin == end) return false;
    const std::uint64_t left = own ? calls + 1 : calls - (std::uint64_t{1} << 32);
    if (share.calls.compare_exchange_weak(calls, left, std::memory_order_relaxed)) {
      index = own ? begin : end - 1;
      return true;
    }
  }
}

void WorkQueue::run_calls(Batch& batch, std::size_t slot) {
  // What follows from spread work goes back to who asked for help: the ranks that wait for a movement were last on the
  // thread that began it.
  posting_for = batch.work.spread && batch.poster != nullptr ? batch.poster : &serving;
  for (std::size_t i = 0; i < batch.shares_used; ++i) {
    Share& share = batch.shares[(slot + i) % batch.shares_used];
    std::size_t index = 0;
    while (take_call(share, i == 0, index)) batch.work.run(batch.work.context, index);
  }
}

// All of its calls have been taken, though some may be under way. Under the lock.
void WorkQueue::put_back(Batch& batch) {
  if (batch.open) {
    batch.open = false;
    open_.erase(std::find(open_.rbegin(), open_.rend(), &batch).base() - 1);
  }
  if (--batch.users == 0) unused_.push_back(&batch);
  // The last of all leaves the others something to see: that it is over.
  if (--busy_ == 0 && open_.empty()) version_.fetch_add(1);
}

// False: the thread has waited long enough and leaves.
bool WorkQueue::idle(std::uint32_t seen) {
  for (int look = 0; look < kLooks; ++look) {
    if (version_.load(std::memory_order_relaxed) != seen) return true;
    for (int i = 0; i < 4; ++i) pause();
  }
  if (when_idle_ == WhenIdle::leave) return false;
  sleepers_.fetch_add(1);
  version_.wait(seen);
  sleepers_.fetch_sub(1);
  return true;
}

void WorkQueue::serve(std::size_t slot) {
  const WorkQueue* const before = std::exchange(serving, this);
  const void* const posting_before = posting_for;
  const void* const me = &serving;
  bool patient = true;
  auto alone = kAlone;
  Lock lock(*this);
  for (;;) {
    if (Batch* const batch = take(me)) {
      lock.unlock();
      run_calls(*batch, slot);
      lock.lock();
      put_back(*batch);
      patient = true;
      alone = kAlone;
      continue;
    }
    if (open_.empty()) {
      const bool over = busy_ == 0;
      if (over && sleepers_.load() > 0) version_.notify_all();
      if (over || !patient) break;
      const std::uint32_t seen = version_.load(std::memory_order_relaxed);
      lock.unlock();
      patient = idle(seen);
      lock.lock();
    } else {
      // What there is will be free for all in a moment, unless it is done by then. As long as it always is, the looks
      // become rarer: each costs those who work a cache line.
      const std::uint32_t seen = spread_posts_.load(std::memory_order_relaxed);
      lock.unlock();
      const Clock::time_point free = Clock::now() + alone;
      while (Clock::now() < free && spread_posts_.load(std::memory_order_relaxed) == seen) pause();
      alone = std::min(2 * alone, kLongestAlone);
      lock.lock();
    }
  }
  if (when_idle_ == WhenIdle::leave) --workers_;
  serving = before;
  posting_for = posting_before;
}

}  // namespace shardproof::internal
