// Task<T>: a lazy coroutine whose result is awaited by one caller.
//
//   Task<int> twice(int x) { co_return 2 * x; }
//   Task<> program(GlobalRank rank) { const int y = co_await twice(to_int(rank)); ... }
//
// Nothing runs before the task is awaited. Awaiting runs it on the caller's stack until it ends or suspends; a caller
// whose task has ended goes on at once. So a loop over tasks does not grow the stack, whether they suspend or not, at
// any level of optimisation; a chain of tasks that await one another takes stack by its depth. An exception leaves
// through the co_await. Destroying a suspended task destroys its frame and, through the tasks that it holds, the frames
// of everything that it awaits.
#pragma once

#include <atomic>
#include <coroutine>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace shardproof {

template <class T = void>
class Task;

namespace internal {

class TaskPromiseBase {
 public:
  std::suspend_always initial_suspend() const noexcept { return {}; }
  auto final_suspend() noexcept {
    struct Continue {
      TaskPromiseBase& promise;
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<>) const noexcept {
        // A caller that has not suspended yet sees that the task has ended and goes on by itself.
        const bool waits = promise.met_.exchange(true, std::memory_order_acq_rel);
        return waits ? promise.continuation_ : std::noop_coroutine();
      }
      void await_resume() const noexcept {}
    };
    return Continue{*this};
  }
  /// The caller, which has run the task until it suspended or ended, suspends too. False: it has ended, perhaps on
  /// another thread. Of the two the second finds the first; what the second does not do, the first has left to it.
  bool wait_for_end() noexcept { return !met_.exchange(true, std::memory_order_acq_rel); }
  void unhandled_exception() noexcept { error_ = std::current_exception(); }
  void continue_with(std::coroutine_handle<> continuation) noexcept { continuation_ = continuation; }
  const std::exception_ptr& error() const noexcept { return error_; }

 private:
  // A task without a caller (a rank's program) returns to whoever resumed it.
  std::coroutine_handle<> continuation_ = std::noop_coroutine();
  std::atomic<bool> met_ = false;  // the task has ended, or its caller waits for that
  std::exception_ptr error_;
};

template <class T>
class TaskPromise : public TaskPromiseBase {
 public:
  Task<T> get_return_object() noexcept;
  template <class U>
  requires std::is_convertible_v<U&&, T>
  void return_value(U&& value) { value_.emplace(std::forward<U>(value)); }
  T take() { return std::move(*value_); }

 private:
  std::optional<T> value_;
};

template <>
class TaskPromise<void> : public TaskPromiseBase {
 public:
  Task<void> get_return_object() noexcept;
  void return_void() const noexcept {}
  void take() const noexcept {}
};

}  // namespace internal

template <class T>
class [[nodiscard]] Task {
 public:
  using promise_type = internal::TaskPromise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  Task() = default;
  explicit Task(Handle handle) noexcept : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() { destroy(); }

  bool valid() const noexcept { return static_cast<bool>(handle_); }
  /// It ran to its end, by return or by exception.
  bool done() const noexcept { return handle_ && handle_.done(); }
  /// The exception that ended it; null where there was none.
  std::exception_ptr error() const noexcept { return handle_ ? handle_.promise().error() : nullptr; }
  /// What to resume to start it; only for whoever runs it without awaiting it.
  std::coroutine_handle<> handle() const noexcept { return handle_; }

  auto operator co_await() const noexcept {
    struct Awaiter {
      Handle handle;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> caller) const noexcept {
        // The awaiter may be gone once somebody else resumes the caller.
        const Handle task = handle;
        task.promise().continue_with(caller);
        task.resume();
        return task.promise().wait_for_end();
      }
      T await_resume() const {
        if (handle.promise().error()) std::rethrow_exception(handle.promise().error());
        return handle.promise().take();
      }
    };
    return Awaiter{handle_};
  }

 private:
  void destroy() noexcept {
    if (handle_) handle_.destroy();
  }

  Handle handle_;
};

template <class T>
Task<T> internal::TaskPromise<T>::get_return_object() noexcept {
  return Task<T>(Task<T>::Handle::from_promise(*this));
}

inline Task<void> internal::TaskPromise<void>::get_return_object() noexcept {
  return Task<void>(Task<void>::Handle::from_promise(*this));
}

}  // namespace shardproof
