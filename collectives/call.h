// One call of one rank: what it asks for, and where it was written.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "collectives/call_info.h"
#include "collectives/call_tag.h"
#include "collectives/group.h"
#include "collectives/options.h"
#include "collectives/source_location.h"
#include "collectives/types.h"

namespace shardproof {

namespace internal {

struct GroupState;

/// One send or receive of a point-to-point call.
struct Part {
  bool is_send = false;
  ElementType type{};
  std::size_t count = 0;
  const void* source = nullptr;  // of a send
  void* target = nullptr;        // of a receive
  GroupRank peer{};
};

/// A call in flight; it lives in the frame of the coroutine that awaits it, or is Issued.
struct Call {
  CallTag tag;
  GroupState* group = nullptr;
  GroupRank rank{};
  Operation operation{};
  ElementType type{};
  bool counts_given = false;
  bool dropped : 1 = false;  // by a CallHook: it does not take place
  bool issued : 1 = false;   // it is under way beside its rank (CallHandle)
  int root = -1;             // of broadcast and reduce; the other rank of send and recv
  int messages_left = 0;     // point-to-point: not delivered yet; counted by std::atomic_ref
  const void* in = nullptr;
  void* out = nullptr;
  std::size_t in_count = 0;
  std::size_t out_count = 0;
  // The v variants: elements per rank. all_gather and reduce_scatter: of the one that is gathered or scattered;
  // all_to_all: what goes to each rank, and what comes from each.
  std::span<const std::size_t> counts;
  std::span<const std::size_t> recv_counts;
  std::span<const Part> sends;  // point-to-point
  std::span<const Part> recvs;
  ReduceOptions options;
  SourceLocation where;
  std::uint64_t sequence = 0;
  std::coroutine_handle<> waiter;
};

/// What only some operations have, for Call's fields of the same names.
struct CallDetails {
  int root = -1;
  bool counts_given = false;
  std::span<const std::size_t> counts;
  std::span<const std::size_t> recv_counts;
  std::span<const Part> sends;
  std::span<const Part> recvs;
};
inline constexpr CallDetails kNoDetails{};

/// Numbers the call; throws InvalidCall when it is wrong by itself, whatever other ranks do.
void check(Call& call);
/// The rank arrives. False: the call is complete and the rank goes on; true: it stays suspended and will be resumed.
bool arrive(Call& call) noexcept;
/// The rank goes on after a complete call.
void leave(Call& call);

}  // namespace internal

/// A call whose element type is known at run time only: for bindings. The fields are those of the typed functions of
/// Communicator, which say what each operation reads of them; counts are in elements. What it points to outlives the
/// call.
struct CallSpec {
  Operation operation{};
  ElementType type{};
  const void* in = nullptr;
  std::size_t in_count = 0;
  void* out = nullptr;
  std::size_t out_count = 0;
  ReduceOptions options = {};  ///< of a call that only moves: algorithm and gpus_per_node
  SourceLocation where = {};
  internal::CallDetails details = {};
};

/// What a Communicator's functions return: co_await it, at once and once. It refers to what it was given, so that only
/// a temporary may be awaited: `auto call = tp.all_reduce(y); co_await call;` does not compile.
class [[nodiscard]] PendingCall {
 public:
  // Field by field into its place: a call is written once and never copied, which at small sizes is most of its cost.
  template <class T, class Options>
  PendingCall(internal::GroupState* group, GroupRank rank, const CallTag& tag, Operation operation,
              std::span<const T> in, std::span<T> out, const Options& options, SourceLocation where,
              const internal::CallDetails& details)
      : call_{.tag = tag,
              .group = group,
              .rank = rank,
              .operation = operation,
              .type = element_type<T>(),
              .counts_given = details.counts_given,
              .dropped = false,
              .issued = false,
              .root = details.root,
              .messages_left = 0,
              .in = in.data(),
              .out = out.data(),
              .in_count = in.size(),
              .out_count = out.size(),
              .counts = details.counts,
              .recv_counts = details.recv_counts,
              .sends = details.sends,
              .recvs = details.recvs,
              .options = initial(options),
              .where = where,
              .sequence = 0,
              .waiter = {}} {
    if constexpr (std::is_same_v<Options, MoveOptions>) {
      call_.options.algorithm = options.algorithm;
      call_.options.gpus_per_node = options.gpus_per_node;
    }
    internal::check(call_);
  }
  PendingCall(internal::GroupState* group, GroupRank rank, const CallTag& tag, const CallSpec& spec)
      : call_{.tag = tag,
              .group = group,
              .rank = rank,
              .operation = spec.operation,
              .type = spec.type,
              .counts_given = spec.details.counts_given,
              .dropped = false,
              .root = spec.details.root,
              .in = spec.in,
              .out = spec.out,
              .in_count = spec.in_count,
              .out_count = spec.out_count,
              .counts = spec.details.counts,
              .recv_counts = spec.details.recv_counts,
              .sends = spec.details.sends,
              .recvs = spec.details.recvs,
              .options = spec.options,
              .where = spec.where,
              .sequence = 0,
              .waiter = {}} {
    internal::check(call_);
  }
  PendingCall(const PendingCall&) = delete;
  PendingCall& operator=(const PendingCall&) = delete;

  auto operator co_await() && noexcept {
    struct Awaiter {
      internal::Call& call;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> waiter) noexcept {
        call.waiter = waiter;
        return internal::arrive(call);
      }
      void await_resume() { internal::leave(call); }
    };
    return Awaiter{call_};
  }

 private:
  friend class CallHandle;
  static const ReduceOptions& initial(const ReduceOptions& options) { return options; }
  static const ReduceOptions& initial(const MoveOptions&) { return kSumInRankOrder; }

  internal::Call call_;
};

}  // namespace shardproof
