#include "collectives/thread_ranks.h"

#include <algorithm>
#include <coroutine>
#include <semaphore>
#include <thread>
#include <utility>

#include "collectives/seeded_executor.h"

namespace shardproof {

namespace {

using Clock = std::chrono::steady_clock;

/// Work of which some calls have not begun.
struct OpenWork {
  Work work;
  std::size_t next = 0;
};

}  // namespace

struct ThreadRanks::Run {
  bool one_at_a_time = false;
  bool over = false;       // nothing of it may be touched any more
  bool gave_up = false;    // it ends without having become quiescent
  bool came_back = false;  // one at a time: the thread that was let go is in its next call, or has ended
  int awake = 0;           // threads that have begun, and do not wait in await()
  int inside = 0;          // of these, the ones that run code of ours
  int working = 0;         // calls of work under way
  std::vector<OpenWork> work;
  Clock::time_point last = Clock::now();  // when anything was last seen of any rank

  bool quiet() const { return awake == 0 && working == 0 && work.empty(); }
};

/// What a thread asks of its coroutine: to await a call, to issue it (both are given), or to await what was issued.
struct ThreadRanks::Request {
  PendingCall* call = nullptr;
  CallHandle* handle = nullptr;
  bool awaits = true;                  // and not only issues
  std::exception_ptr error = nullptr;  // of awaiting what was issued: the thread's to deal with
};

struct ThreadRanks::Thread {
  std::counting_semaphore<> go{0};
  std::coroutine_handle<> waiting;  // the rank's coroutine, until the thread says what is next
  Request* request = nullptr;       // what is next: this,
  bool ended = false;               // or the end
  std::exception_ptr error;
  std::uint64_t starts = 0;  // the run that begin() returns into
  std::uint64_t run = 0;     // the run that the thread is in; 0: none
  bool in_call = false;
  bool woken = false;    // and the call is complete
  bool dropped = false;  // and the run is over
};

/// The rank's coroutine waits for what its thread does next: a call, or none any more.
struct ThreadRanks::Next {
  ThreadRanks* ranks;
  Thread* thread;

  bool await_ready() const { return ranks->run_->one_at_a_time && ranks->hand_over(*thread); }
  void await_suspend(std::coroutine_handle<> coroutine) const {
    if (ranks->run_->one_at_a_time) return;  // given up: nobody resumes it
    Thread& mine = *thread;
    {
      const Lock lock(ranks->mutex_);
      mine.waiting = coroutine;
      mine.woken = true;
      ++ranks->run_->awake;
    }
    mine.go.release();  // from here on the thread may resume the coroutine
  }
  Request* await_resume() const { return thread->ended ? nullptr : thread->request; }
};

/// A frame is destroyed when the run is over, whatever its thread then waits for.
struct ThreadRanks::Drop {
  ThreadRanks* ranks;
  Thread* thread;

  ~Drop() {
    const Lock lock(ranks->mutex_);
    if (thread->run != ranks->runs_ || !thread->in_call || thread->woken) return;
    thread->dropped = true;
    thread->go.release();
  }
};

ThreadRanks::ThreadRanks(int ranks, std::chrono::nanoseconds patience) : patience_(patience) {
  for (int i = 0; i < ranks; ++i) threads_.push_back(std::make_unique<Thread>());
}
ThreadRanks::~ThreadRanks() = default;

Task<> ThreadRanks::program(GlobalRank rank) {
  Thread& mine = thread(rank);
  {
    const Lock lock(mutex_);
    mine.starts = runs_;
    mine.ended = false;
  }
  return serve(this, &mine);
}

// Pointers and nothing constant: at -O2 GCC 12 keeps what it takes for unchanging in registers, over a suspension.
Task<> ThreadRanks::serve(ThreadRanks* ranks, Thread* thread) {
  Drop drop{ranks, thread};
  Next next{ranks, thread};
  while (Request* const asked = co_await next) {
    if (asked->handle == nullptr) {
      co_await std::move(*asked->call);
      continue;
    }
    if (asked->call != nullptr) *asked->handle = CallHandle(*asked->call);
    if (!asked->awaits) continue;
    try {
      co_await *asked->handle;
    } catch (...) {
      asked->error = std::current_exception();
    }
  }
  if (thread->error) std::rethrow_exception(std::exchange(thread->error, nullptr));
}

void ThreadRanks::interrupt() {
  const Lock lock(mutex_);
  interrupted_ = true;
  if (run_ != nullptr) run_->gave_up = true;
  changed_.notify_all();
}

void ThreadRanks::close() {
  const Lock lock(mutex_);
  closed_ = true;
  for (const auto& waiting : threads_) waiting->go.release();
}

bool ThreadRanks::begin(GlobalRank rank) {
  Thread& mine = thread(rank);
  for (;;) {
    mine.go.acquire();
    const Lock lock(mutex_);
    if (closed_) return false;
    if (mine.starts != runs_ || run_->over) continue;
    mine.run = mine.starts;
    mine.in_call = false;
    mine.woken = false;
    return true;
  }
}

bool ThreadRanks::takes_part(const Thread& mine) const {
  return mine.run != 0 && mine.run == runs_ && !run_->over && !closed_;
}

void ThreadRanks::enter(const Thread& mine) {
  if (!takes_part(mine)) throw RunOver();
  run_->last = Clock::now();
  ++run_->inside;
}

void ThreadRanks::leave() {
  run_->last = Clock::now();
  if (--run_->inside == 0 && run_->gave_up) changed_.notify_all();
}

// The thread has said what is next: the coroutine goes on with it.
void ThreadRanks::go_on(Thread& mine, Lock& lock) {
  enter(mine);
  if (run_->one_at_a_time) {
    run_->came_back = true;
    leave();
    changed_.notify_all();
    return;
  }
  const std::coroutine_handle<> coroutine = mine.waiting;
  lock.unlock();
  coroutine.resume();
  lock.lock();
  work_off(lock);
  --run_->awake;
  leave();
  tell_if_quiet();
}

void ThreadRanks::await(GlobalRank rank, PendingCall&& call) {
  Request request{.call = &call};
  ask(rank, request);
}

CallHandle ThreadRanks::issue(GlobalRank rank, PendingCall&& call) {
  CallHandle handle;
  Request request{.call = &call, .handle = &handle, .awaits = false};
  ask(rank, request);
  return handle;
}

void ThreadRanks::issue_and_await(GlobalRank rank, PendingCall&& call) {
  CallHandle handle;
  Request request{.call = &call, .handle = &handle};
  ask(rank, request);
  if (request.error) std::rethrow_exception(request.error);
}

void ThreadRanks::await(GlobalRank rank, CallHandle& handle) {
  Request request{.handle = &handle};
  ask(rank, request);
  if (request.error) std::rethrow_exception(request.error);
}

void ThreadRanks::ask(GlobalRank rank, Request& request) {
  Thread& mine = thread(rank);
  {
    Lock lock(mutex_);
    if (!takes_part(mine)) throw RunOver();
    mine.request = &request;
    mine.in_call = true;
    mine.woken = false;
    go_on(mine, lock);
  }
  mine.go.acquire();
  const Lock lock(mutex_);
  mine.in_call = false;
  if (std::exchange(mine.dropped, false)) throw RunOver();
}

void ThreadRanks::end(GlobalRank rank, std::exception_ptr error) {
  Thread& mine = thread(rank);
  Lock lock(mutex_);
  if (takes_part(mine)) {
    mine.error = std::move(error);
    mine.ended = true;
    go_on(mine, lock);
  }
  mine.run = 0;
}

ThreadRanks::Inside::Inside(ThreadRanks& ranks, GlobalRank rank) : ranks_(ranks) {
  const Lock lock(ranks.mutex_);
  ranks.enter(ranks.thread(rank));
}

ThreadRanks::Inside::~Inside() {
  const Lock lock(ranks_.mutex_);
  ranks_.leave();
}

void ThreadRanks::work_off(Lock& lock) {
  Run& run = *run_;
  while (!run.work.empty()) {
    OpenWork& open = run.work.back();
    const Work work = open.work;
    const std::size_t index = open.next++;
    if (open.next == work.count) run.work.pop_back();
    ++run.working;
    lock.unlock();
    work.run(work.context, index);
    lock.lock();
    --run.working;
    run.last = Clock::now();
  }
}

void ThreadRanks::tell_if_quiet() {
  if (run_->quiet()) changed_.notify_all();
}

// One at a time: lets the thread go until its next call. False: the run is given up.
bool ThreadRanks::hand_over(Thread& next) {
  Lock lock(mutex_);
  Run& run = *run_;
  if (run.gave_up) return false;
  run.came_back = false;
  run.last = Clock::now();
  next.woken = true;
  next.go.release();
  while (!run.came_back && !run.gave_up) {
    const Clock::time_point until = run.last + patience_;
    changed_.wait_until(lock, until);
    if (!run.came_back && run.inside == 0 && Clock::now() >= run.last + patience_) run.gave_up = true;
  }
  return run.came_back;
}

/// Runs posted work, while the threads of the ranks go their own ways.
class ThreadRanks::FreeExecutor final : public Executor {
 public:
  FreeExecutor(ThreadRanks& ranks, int threads) : ranks_(ranks), threads_(threads) {}

  void post(Work work) override {
    if (work.count == 0) return;
    const Lock lock(ranks_.mutex_);
    ranks_.run_->work.push_back({work});
    // Who posts does it before anything else; others come for what is long.
    if (work.spread) ranks_.changed_.notify_all();
  }

  void run() override {
    std::vector<std::thread> helpers;
    // One of the ranks is there too, the last to come to a call.
    for (int i = 2; i < threads_; ++i) helpers.emplace_back([this] { help(); });
    {
      Lock lock(ranks_.mutex_);
      Run& run = *ranks_.run_;
      run.last = Clock::now();
      for (;;) {
        ranks_.work_off(lock);
        if (run.quiet() || (run.gave_up && run.inside == 0 && run.working == 0)) break;
        ranks_.changed_.wait_until(lock, run.last + ranks_.patience_);
        const bool busy = run.inside > 0 || run.working > 0 || !run.work.empty() || run.quiet();
        if (!busy && Clock::now() >= run.last + ranks_.patience_) run.gave_up = true;
      }
      gave_up_ = run.gave_up && !run.quiet();
      run.over = true;
      ranks_.changed_.notify_all();
    }
    for (std::thread& helper : helpers) helper.join();
  }

  int threads() const override { return threads_; }
  bool conclusive() const override { return !gave_up_; }

 private:
  void help() {
    Lock lock(ranks_.mutex_);
    const Run& run = *ranks_.run_;
    while (!run.over) {
      ranks_.work_off(lock);
      ranks_.tell_if_quiet();
      if (run.gave_up) ranks_.changed_.notify_all();
      ranks_.changed_.wait(lock, [&] { return run.over || !run.work.empty(); });
    }
  }

  ThreadRanks& ranks_;
  int threads_;
  bool gave_up_ = false;
};

/// One rank at a time, in the order of a seed.
class ThreadRanks::ScheduledExecutor final : public Executor {
 public:
  ScheduledExecutor(ThreadRanks& ranks, std::uint64_t seed) : ranks_(ranks), seeded_(seed) {}

  void post(Work work) override { seeded_.post(work); }
  void run() override {
    seeded_.run();
    Lock lock(ranks_.mutex_);
    Run& run = *ranks_.run_;
    ranks_.changed_.wait(lock, [&] { return run.inside == 0; });
    run.over = true;
    gave_up_ = run.gave_up;
  }
  int threads() const override { return seeded_.threads(); }
  bool conclusive() const override { return !gave_up_; }

 private:
  ThreadRanks& ranks_;
  SeededExecutor seeded_;
  bool gave_up_ = false;
};

std::unique_ptr<Executor> ThreadRanks::make_executor(int threads, std::optional<std::uint64_t> schedule) {
  {
    const Lock lock(mutex_);
    run_ = std::make_unique<Run>();
    run_->one_at_a_time = schedule.has_value();
    run_->gave_up = interrupted_;
    ++runs_;
  }
  if (schedule) return std::make_unique<ScheduledExecutor>(*this, *schedule);
  return std::make_unique<FreeExecutor>(*this, threads > 0 ? threads : available_threads());
}

}  // namespace shardproof
