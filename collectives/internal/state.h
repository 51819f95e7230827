// The state behind World and Communicator.
//
// A group is one place of rendezvous. A rank waits in at most one collective, so the calls of one sequence number fill
// the group's member slots exactly once; the last to arrive finds all of them, moves the data (alone, or in pieces
// spread over the threads), and posts the others. The slots point to calls in the frames of the waiting coroutines: an
// idle rank costs its frame and one slot. Of messages a rank may have any number under way: each waits in a mailbox.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "collectives/call.h"
#include "collectives/call_hook.h"
#include "collectives/executor.h"
#include "collectives/internal/issued.h"
#include "collectives/internal/movement.h"
#include "collectives/record.h"
#include "collectives/task.h"
#include "collectives/world.h"

namespace shardproof::internal {

struct WorldState;

/// A member of a group; written by its own rank only, read by others once it has arrived or nothing runs.
struct alignas(64) Member {
  Call* call = nullptr;           // the collective under way in this group
  std::uint64_t collectives = 0;  // calls made in this group, by kind
  std::uint64_t point_to_point = 0;
  std::uint64_t issued = 0;  // of the collectives: the k-th is in the k-th lane
};

/// Messages to one rank that wait for their other side.
struct alignas(64) Mailbox {
  struct Waiting {
    Call* call;
    Part part;
  };
  std::mutex mutex;
  std::vector<Waiting> sends;
  std::vector<Waiting> recvs;
};

struct GroupState {
  WorldState* world = nullptr;
  GroupId id{};
  Group group;
  bool ascending = false;   // group.members is sorted
  bool listed = false;      // made by whoever asked for it first: its id depends on the schedule
  std::vector<char> asked;  // of a listed group, by GroupRank: who has asked for it in this run
  std::vector<Member> members;
  std::unique_ptr<Mailbox[]> mailboxes;  // [n], made at the first message
  std::once_flag mailboxes_made;
  std::size_t last = 0;  // who arrived last, when it goes on without suspending
  Movement movement;
  std::mutex lanes_mutex;
  std::map<std::uint64_t, std::unique_ptr<GroupState>> lanes;  // by the number of the issued call
  std::vector<std::unique_ptr<GroupState>> unused_lanes;
  GroupState* lane_of = nullptr;  // of a lane: its group
  std::uint64_t lane = 0;         // and its number there
  std::atomic<int> left{0};       // how many ranks have awaited their call
  alignas(64) std::atomic<int> arrived{0};

  const Call& call(std::size_t rank) const { return *members[rank].call; }
  Call& call(std::size_t rank) { return *members[rank].call; }
  int size() const { return group.size(); }
};

struct alignas(64) RankState {
  Task<> task;
  std::exception_ptr start_error;  // thrown before there was a task
  std::vector<CollectiveRecord> records;
  std::vector<std::shared_ptr<Issued>> issued;  // and not awaited yet; touched by the rank only, while it runs
  std::vector<std::shared_ptr<Issued>> unused_issued;
};

/// A meeting that failed, or what a rank threw. Several may fail for the same rank; which one is told does not depend
/// on the schedule.
struct Failure {
  GlobalRank rank;
  const GroupState* group = nullptr;  // where it met; null, and after these, for what the rank itself threw
  std::uint64_t sequence = 0;
  std::exception_ptr error;
};

struct WorldState {
  WorldState(int size_, WorldOptions options_)
      : size(size_), options(options_), ranks(static_cast<std::size_t>(size_)) {}

  int size;
  WorldOptions options;
  std::vector<RankState> ranks;
  std::vector<std::unique_ptr<GroupState>> groups;
  std::map<std::string, int> groups_of_axis;
  std::mutex labelled_mutex;  // of labelled, and of adding to groups what it names
  std::map<std::pair<std::string, std::vector<GlobalRank>>, GroupState*> labelled;
  Executor* executor = nullptr;     // of the current run
  std::atomic<bool> issues{false};  // a call has been issued in this run
  CallHook* hook = nullptr;
  const World::Program* program = nullptr;
  std::mutex failure_mutex;
  std::vector<Failure> failures;

  RankState& rank(GlobalRank id) { return ranks[static_cast<std::size_t>(to_int(id))]; }
  /// A call failed where it met others, as which it counts for `rank`.
  void fail(GlobalRank rank, const Call& call, std::exception_ptr error) {
    const std::lock_guard lock(failure_mutex);
    const GroupState* lane_of = call.group->lane_of;
    failures.push_back({rank, lane_of != nullptr ? lane_of : call.group, call.sequence, std::move(error)});
  }
};

/// An order of groups that does not depend on who asked for one first.
bool comes_before(const GroupState& a, const GroupState& b);
/// All groups in that order.
std::vector<const GroupState*> in_order(const WorldState& world);

CallInfo describe(const Call& call);
/// One message of a point-to-point call.
CallInfo describe(const Call& call, const Part& part);

/// Throws CollectiveMismatch if two of the calls that a group's ranks have made, but not completed, do not match: of
/// the same number, or come to the same meeting.
void check_outstanding(const GroupState& group);
/// The same, and what only shows when all are there: edges and overlaps.
void check_complete(GroupState& state);
/// Throws CollectiveMismatch if a message is not what its receiver expects.
void check_message(const Call& send_call, const Part& send, const Call& recv_call, const Part& recv);

bool arrive_point_to_point(Call& call);
/// As arrive, of a call that has its place: a hook has seen it, and it has its number and its lane.
bool arrive_issued(Issued& issued) noexcept;
void keep_record(const Call& call);

/// Bytes that the caller sends.
std::uint64_t bytes_sent(const Call& call);

/// Who waits for whom, when nothing runs any more.
WaitGraph make_wait_graph(const WorldState& world);

}  // namespace shardproof::internal
