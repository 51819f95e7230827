// A call under way beside its rank: on copies of the rank's buffers, in a lane of its group.
//
// A lane is a rendezvous for the calls that the ranks of a group issue as their k-th; it is made when the first of them
// comes and used again when the last has been awaited.
#pragma once

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <vector>

#include "collectives/call.h"
#include "collectives/internal/overlap.h"

namespace shardproof::internal {

struct RankState;

struct Issued : Call {
  enum State : int { under_way, ended, awaited };

  GroupState* asked = nullptr;   // the group, of which Call's may be a lane
  const void* own_in = nullptr;  // the rank's buffers
  void* own_out = nullptr;
  bool input_replaced = false;  // by a hook
  std::vector<std::byte> staged_in;
  std::vector<std::byte> staged_out;
  std::vector<std::size_t> own_counts;
  std::vector<std::size_t> own_recv_counts;
  // Whoever comes second, the end of the call or the rank that awaits it, finds the first.
  std::atomic<int> state{under_way};
  bool over = false;                   // the run that it belongs to
  std::atomic<bool> forsaken = false;  // its handle is gone, and nobody has awaited it
};

/// Copies the input, covers the output and lets the rank arrive.
std::shared_ptr<Issued> issue(const Call& given);
/// The call needs nobody any more.
void end(Issued& issued) noexcept;
/// Once it has ended, on its rank: writes the output, makes the record and frees the lane. Throws InvalidCall when the
/// buffers are not as they were left.
void settle(const std::shared_ptr<Issued>& issued);

/// An issued call that has ended, awaited or not.
bool has_ended(const Call& call);
/// Its rank waits for it: a blocking call, or an issued one whose handle is awaited.
bool is_awaited(const Call& call);

/// The handle of an issued call is gone, and its buffers may be too: what lies there now may be another rank's.
bool is_forsaken(const Call& call);

/// What the call does with the buffers that it was given.
bool reads_input(const Call& call);
bool writes_output(const Call& call);

/// Throws InvalidCall when a call of its own overlaps one of the rank's that has not been awaited.
void check_under_way(const Call& call);
/// The error of a call that its rank has never awaited.
std::exception_ptr never_awaited(const Issued& issued);

/// No call of the rank is under way any more.
void forget_issued(RankState& rank);

}  // namespace shardproof::internal
