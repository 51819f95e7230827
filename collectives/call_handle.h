// What the i-variants of a Communicator's functions return: a call under way while its rank does something else.
//
//   CallHandle sum = tp.iall_reduce(partial, total);
//   ...                                                     // compute
//   co_await sum;                                           // total holds the sum from here on
//
// Any number may be under way, awaited in any order. A collective's k-th issued call of a group meets the k-th of the
// other ranks, and all ranks of the group make the same calls, blocking and issued, in the same order: else
// CollectiveMismatch. A rank waits for others only while it awaits, which is what a proof of deadlock counts.
//
// The input is copied when the call is issued, and the output written when it is awaited: what a rank does in between
// is never a race, and results do not depend on the schedule. What it must not do is found nevertheless, as
// InvalidCall:
// - a call or a tap of the same rank whose buffer overlaps the output, or that writes where the input is;
// - an input that changed, and an output that was written, by the time it is awaited;
// - a handle that is dropped, or never awaited by a program that returns.
// Until then every byte of the output that is not the input's is 0xff (a NaN in float), so that what is computed from
// an output that was read early shows. Buffers live until the call is awaited; counts are copied. A record
// (World::records) is made when the call is awaited.
#pragma once

#include <coroutine>
#include <memory>

#include "collectives/call.h"

namespace shardproof {

namespace internal {
struct Issued;
}

class [[nodiscard]] CallHandle {
 public:
  /// Holds no call.
  CallHandle() = default;
  /// Issues the call.
  explicit CallHandle(const PendingCall& call);
  CallHandle(CallHandle&&) noexcept = default;
  CallHandle& operator=(CallHandle&& other) noexcept;
  ~CallHandle();

  auto operator co_await() {
    struct Awaiter {
      CallHandle& handle;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return handle.wait(waiter); }
      void await_resume() const { handle.finish(); }
    };
    require_call();
    return Awaiter{*this};
  }

 private:
  /// Throws std::logic_error when it holds none, or one of a run that is over.
  void require_call() const;
  bool wait(std::coroutine_handle<> waiter) noexcept;
  void finish();

  std::shared_ptr<internal::Issued> issued_;
};

}  // namespace shardproof
