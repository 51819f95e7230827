// A rank's way into one group: the collectives, and point-to-point messages.
//
//   co_await tp.all_reduce(y.span());                                         // in place, sum in rank order
//   co_await tp.all_reduce(x.span(), y.span(), {.algorithm = Algorithm::ring});
//   co_await ep.all_to_all_v(rows, send_counts, received, recv_counts);
//   co_await tp.tagged({.op = 3, .layer = 7}).all_reduce(y.span());           // the record says what it was for
//
// Buffers are contiguous ranges of one element type (vector, span, array); they belong to the caller and must live
// until the co_await returns. n is the group's size, counts are in elements. Every rank of the group makes the same
// calls in the same order; a call that is wrong by itself throws InvalidCall from the co_await, calls that do not match
// end the run with CollectiveMismatch, and a call that others never join ends it with DeadlockError (see World::run).
//
// Each has an i-variant, whose handle is awaited later: `auto sum = tp.iall_reduce(y); ...; co_await sum;`.
//
// Unless said otherwise an output must not overlap any input or another rank's output, except that it may be exactly
// the rank's own input (all_reduce, reduce, broadcast), or the input may be the rank's own part of the output
// (all_gather), or the output the rank's own part of the input (reduce_scatter).
#pragma once

#include <ranges>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "collectives/call.h"
#include "collectives/call_handle.h"
#include "collectives/message.h"

namespace shardproof {

/// A small handle, cheap to copy; valid as long as its World.
class Communicator {
 public:
  /// Of no group: whatever it is asked for but its rank throws std::logic_error.
  Communicator() = default;
  Communicator(internal::GroupState& state, GroupRank rank) : state_(&state), rank_(rank) {}

  GroupRank rank() const { return rank_; }
  int size() const { return group().size(); }
  const Group& group() const;
  GlobalRank global_rank() const { return group().global(rank_); }
  /// The same handle, whose calls carry the tag; nothing else depends on it.
  Communicator tagged(const CallTag& tag) const {
    Communicator copy = *this;
    copy.tag_ = tag;
    return copy;
  }
  /// For CallHook's redirect.
  internal::GroupState* state() const { return state_; }

  /// out[i] = the reduction of every rank's in[i], with the same bits on all ranks.
  template <WriteBuffer Out>
  PendingCall all_reduce(std::span<const ElementOf<Out>> in, Out&& out, const ReduceOptions& options = kSumInRankOrder,
                         SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_reduce, in, std::span(out), options, where);
  }
  template <WriteBuffer InOut>
  PendingCall all_reduce(InOut&& in_out, const ReduceOptions& options = kSumInRankOrder,
                         SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_reduce, read_only(in_out), std::span(in_out), options, where);
  }

  /// out = in of rank 0, in of rank 1, ...; out has n times as many elements as in.
  template <WriteBuffer Out>
  PendingCall all_gather(std::span<const ElementOf<Out>> in, Out&& out, const MoveOptions& options = kMoveDirectly,
                         SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_gather, in, std::span(out), options, where);
  }
  /// The same with counts[i] elements from rank i; every rank gives the same counts.
  template <WriteBuffer Out>
  PendingCall all_gather_v(std::span<const ElementOf<Out>> in, Out&& out, const CountsView& counts,
                           const MoveOptions& options = kMoveDirectly,
                           SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_gather, in, std::span(out), options, where, {.counts_given = true, .counts = counts});
  }

  /// out = part rank() of the reduction of all inputs; in has n parts of out's size.
  template <WriteBuffer Out>
  PendingCall reduce_scatter(std::span<const ElementOf<Out>> in, Out&& out,
                             const ReduceOptions& options = kSumInRankOrder,
                             SourceLocation where = SourceLocation::current()) const {
    return make(Operation::reduce_scatter, in, std::span(out), options, where);
  }
  /// The same with counts[i] elements in part i; every rank gives the same counts.
  template <WriteBuffer Out>
  PendingCall reduce_scatter_v(std::span<const ElementOf<Out>> in, Out&& out, const CountsView& counts,
                               const ReduceOptions& options = kSumInRankOrder,
                               SourceLocation where = SourceLocation::current()) const {
    return make(Operation::reduce_scatter, in, std::span(out), options, where,
                {.counts_given = true, .counts = counts});
  }

  /// Part j of in goes to rank j, as part rank() of its out; all parts have the same size.
  template <WriteBuffer Out>
  PendingCall all_to_all(std::span<const ElementOf<Out>> in, Out&& out, const MoveOptions& options = kMoveDirectly,
                         SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_to_all, in, std::span(out), options, where);
  }
  /// The same with send_counts[j] elements to rank j and recv_counts[i] from rank i, parts lying one after another.
  template <WriteBuffer Out>
  PendingCall all_to_all_v(std::span<const ElementOf<Out>> in, const CountsView& send_counts, Out&& out,
                           const CountsView& recv_counts, const MoveOptions& options = kMoveDirectly,
                           SourceLocation where = SourceLocation::current()) const {
    return make(Operation::all_to_all, in, std::span(out), options, where,
                {.counts_given = true, .counts = send_counts, .recv_counts = recv_counts});
  }

  /// The root's elements to every rank.
  template <WriteBuffer InOut>
  PendingCall broadcast(InOut&& in_out, GroupRank root, SourceLocation where = SourceLocation::current()) const {
    return make(Operation::broadcast, read_only(in_out), std::span(in_out), kSumInRankOrder, where,
                {.root = to_int(root)});
  }

  /// As all_reduce, but only the root receives the result; elsewhere out is not touched and may be empty.
  template <WriteBuffer Out>
  PendingCall reduce(std::span<const ElementOf<Out>> in, Out&& out, GroupRank root,
                     const ReduceOptions& options = kSumInRankOrder,
                     SourceLocation where = SourceLocation::current()) const {
    return make(Operation::reduce, in, std::span(out), options, where, {.root = to_int(root)});
  }

  /// Returns once every rank of the group has called it.
  PendingCall barrier(SourceLocation where = SourceLocation::current()) const {
    return make(Operation::barrier, std::span<const float>(), std::span<float>(), kSumInRankOrder, where);
  }

  /// Synchronous: returns once the receiver has the message. Sends and receives between two ranks match in order.
  template <ReadBuffer In>
  PendingCall send(const In& data, GroupRank to, SourceLocation where = SourceLocation::current()) const {
    using T = ElementOf<In>;
    return make(Operation::send, std::span<const T>(data), std::span<T>(), kSumInRankOrder, where,
                {.root = to_int(to)});
  }
  template <WriteBuffer Out>
  PendingCall recv(Out&& data, GroupRank from, SourceLocation where = SourceLocation::current()) const {
    using T = ElementOf<Out>;
    return make(Operation::recv, std::span<const T>(), std::span(data), kSumInRankOrder, where, {.root = to_int(from)});
  }
  /// All messages together; returns once all of them have arrived.
  PendingCall exchange(Exchange messages, SourceLocation where = SourceLocation::current()) const;
  /// Any of the calls above, of a type that is known at run time only.
  PendingCall call(const CallSpec& spec) const { return PendingCall(state_, rank_, tag_, spec); }

  // The same calls, under way until their handle is awaited (CallHandle). Counts may be temporaries, buffers may not.

  template <OutputBuffer Out>
  CallHandle iall_reduce(const InputView<ElementOf<Out>>& in, Out&& out, const ReduceOptions& options = kSumInRankOrder,
                         SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_reduce(in, out, options, where));
  }
  template <OutputBuffer InOut>
  CallHandle iall_reduce(InOut&& in_out, const ReduceOptions& options = kSumInRankOrder,
                         SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_reduce(in_out, options, where));
  }
  template <OutputBuffer Out>
  CallHandle iall_gather(const InputView<ElementOf<Out>>& in, Out&& out, const MoveOptions& options = kMoveDirectly,
                         SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_gather(in, out, options, where));
  }
  template <OutputBuffer Out>
  CallHandle iall_gather_v(const InputView<ElementOf<Out>>& in, Out&& out, const std::vector<std::size_t>& counts,
                           const MoveOptions& options = kMoveDirectly,
                           SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_gather_v(in, out, counts, options, where));
  }
  template <OutputBuffer Out>
  CallHandle ireduce_scatter(const InputView<ElementOf<Out>>& in, Out&& out,
                             const ReduceOptions& options = kSumInRankOrder,
                             SourceLocation where = SourceLocation::current()) const {
    return CallHandle(reduce_scatter(in, out, options, where));
  }
  template <OutputBuffer Out>
  CallHandle ireduce_scatter_v(const InputView<ElementOf<Out>>& in, Out&& out, const std::vector<std::size_t>& counts,
                               const ReduceOptions& options = kSumInRankOrder,
                               SourceLocation where = SourceLocation::current()) const {
    return CallHandle(reduce_scatter_v(in, out, counts, options, where));
  }
  template <OutputBuffer Out>
  CallHandle iall_to_all(const InputView<ElementOf<Out>>& in, Out&& out, const MoveOptions& options = kMoveDirectly,
                         SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_to_all(in, out, options, where));
  }
  template <OutputBuffer Out>
  CallHandle iall_to_all_v(const InputView<ElementOf<Out>>& in, const std::vector<std::size_t>& send_counts, Out&& out,
                           const std::vector<std::size_t>& recv_counts, const MoveOptions& options = kMoveDirectly,
                           SourceLocation where = SourceLocation::current()) const {
    return CallHandle(all_to_all_v(in, send_counts, out, recv_counts, options, where));
  }
  template <OutputBuffer InOut>
  CallHandle ibroadcast(InOut&& in_out, GroupRank root, SourceLocation where = SourceLocation::current()) const {
    return CallHandle(broadcast(in_out, root, where));
  }
  template <OutputBuffer Out>
  CallHandle ireduce(const InputView<ElementOf<Out>>& in, Out&& out, GroupRank root,
                     const ReduceOptions& options = kSumInRankOrder,
                     SourceLocation where = SourceLocation::current()) const {
    return CallHandle(reduce(in, out, root, options, where));
  }
  CallHandle ibarrier(SourceLocation where = SourceLocation::current()) const { return CallHandle(barrier(where)); }
  template <ReadBuffer In>
  requires std::ranges::borrowed_range<In> CallHandle isend(In&& data, GroupRank to,
                                                            SourceLocation where = SourceLocation::current())
  const { return CallHandle(send(data, to, where)); }
  template <OutputBuffer Out>
  CallHandle irecv(Out&& data, GroupRank from, SourceLocation where = SourceLocation::current()) const {
    return CallHandle(recv(data, from, where));
  }

 private:
  template <class T, class Options>
  PendingCall make(Operation operation, std::span<const T> in, std::span<T> out, const Options& options,
                   SourceLocation where, const internal::CallDetails& details = internal::kNoDetails) const {
    return PendingCall(state_, rank_, tag_, operation, in, out, options, where, details);
  }

  CallTag tag_;  // first, as in Call: elsewhere its copy shows in the time of a barrier
  internal::GroupState* state_ = nullptr;
  GroupRank rank_{};
};

/// Throws InvalidCall when the bytes, which are to be shown as the tap of that name, overlap the output of a call that
/// the communicator's rank has issued and not awaited.
void refuse_early_read(const Communicator& of_rank, const void* data, std::size_t bytes, std::string_view tap);

}  // namespace shardproof
