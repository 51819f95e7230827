// The rendezvous of the ranks of a group.
#include <fmt/format.h>

#include <algorithm>

#include "collectives/errors.h"
#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

// Below this many bytes the last arriver moves everything itself; above, a piece has at least half as many.
constexpr std::size_t kSplitBytes = 256 << 10;

void resume(GroupState& state, std::size_t rank) noexcept {
  state.call(rank).waiter.resume();
}

void resume_all(void* context, std::size_t index) noexcept {
  resume(*static_cast<GroupState*>(context), index);
}

void end_all(void* context, std::size_t index) noexcept {
  end(static_cast<Issued&>(static_cast<GroupState*>(context)->call(index)));
}

void end_others(void* context, std::size_t index) noexcept {
  const GroupState& state = *static_cast<GroupState*>(context);
  end_all(context, index < state.last ? index : index + 1);
}

void resume_others(void* context, std::size_t index) noexcept {
  GroupState& state = *static_cast<GroupState*>(context);
  resume(state, index < state.last ? index : index + 1);
}

// What has come wrong counts for the group's lowest rank.
void fail_meeting(GroupState& state, const Call& last) {
  const auto& members = state.group.members;
  const auto lowest = std::min_element(members.begin(), members.end());
  const Call* call = state.members[static_cast<std::size_t>(lowest - members.begin())].call;
  state.world->fail(*lowest, call != nullptr ? *call : last, std::current_exception());
}

void run_piece(void* context, std::size_t piece) noexcept {
  GroupState& state = *static_cast<GroupState*>(context);
  Movement& movement = state.movement;
  try {
    move_piece(state, piece);
  } catch (...) {  // out of memory
    movement.failed.store(true, std::memory_order_relaxed);
    fail_meeting(state, state.call(0));
  }
  if (movement.pieces_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  if (!movement.failed.load(std::memory_order_relaxed)) {
    const bool is_lane = state.lane_of != nullptr;
    state.world->executor->post({is_lane ? end_all : resume_all, &state, state.members.size()});
  }
}

std::size_t pieces_for(const GroupState& state, std::size_t bytes) {
  const auto threads = static_cast<std::size_t>(state.world->executor->threads());
  if (threads == 1 || bytes < kSplitBytes) return 1;
  // A few pieces per thread, because the threads may be busy with ranks when the pieces come.
  return std::min({4 * threads, 2 * bytes / kSplitBytes, std::max<std::size_t>(1, state.movement.elements)});
}

// A communicator belongs to one rank. Where another uses it too, two calls come to one slot and none to another.
[[noreturn]] void refuse_shared(const Call& call) {
  throw InvalidCall(describe(call),
                    fmt::format("the communicator of rank {} in {} is used by more than one rank, or by "
                                "two calls of one at once that are not issued",
                                to_int(call.group->group.global(call.rank)), call.group->group.name()));
}

// The last rank is here. False: it goes on by itself.
bool complete(GroupState& state, std::size_t last) {
  for (const Member& member : state.members) {
    if (member.call == nullptr) refuse_shared(state.call(last));
  }
  check_complete(state);
  const std::size_t bytes = prepare_movement(state);
  Movement& movement = state.movement;
  movement.pieces = pieces_for(state, bytes);
  if (movement.pieces > 1) {
    movement.failed.store(false, std::memory_order_relaxed);
    movement.pieces_left.store(movement.pieces, std::memory_order_relaxed);
    state.world->executor->post({run_piece, &state, movement.pieces, true});
    return true;
  }
  move_piece(state, 0);
  state.last = last;
  const bool is_lane = state.lane_of != nullptr;
  state.world->executor->post({is_lane ? end_others : resume_others, &state, state.members.size() - 1});
  return false;
}

// The rank has come to its place.
bool meet(GroupState& state, Member& member, Call& call) noexcept {
  member.call = &call;
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < state.size()) return true;
  // Nobody can arrive for the next call before this one has resumed somebody.
  state.arrived.store(0, std::memory_order_relaxed);
  try {
    return complete(state, static_cast<std::size_t>(to_int(call.rank)));
  } catch (...) {
    // Nobody is resumed: the ranks of this group stay where they are until the run has ended.
    fail_meeting(state, call);
    return true;
  }
}

}  // namespace

bool arrive(Call& call) noexcept {
  CallHook* hook = call.group->world->hook;
  if (hook != nullptr && !hook->before(call.group->group.global(call.rank), call)) {
    call.dropped = true;
    return false;
  }
  if (is_point_to_point(call.operation)) {
    ++call.group->members[static_cast<std::size_t>(to_int(call.rank))].point_to_point;
    return arrive_point_to_point(call);
  }
  GroupState& state = *call.group;
  const auto rank = static_cast<std::size_t>(to_int(call.rank));
  Member& member = state.members[rank];
  if (member.call != nullptr) {
    try {
      refuse_shared(call);
    } catch (...) {
      state.world->fail(state.group.global(call.rank), call, std::current_exception());
    }
    return true;
  }
  ++member.collectives;
  return meet(state, member, call);
}

bool arrive_issued(Issued& issued) noexcept {
  if (is_point_to_point(issued.operation)) return arrive_point_to_point(issued);
  GroupState& state = *issued.group;
  return meet(state, state.members[static_cast<std::size_t>(to_int(issued.rank))], issued);
}

void leave(Call& call) {
  GroupState& state = *call.group;
  WorldState& world = *state.world;
  if (world.hook != nullptr) world.hook->after(state.group.global(call.rank), call);
  if (call.dropped) return;
  if (!is_point_to_point(call.operation)) state.members[static_cast<std::size_t>(to_int(call.rank))].call = nullptr;
  if (world.options.keep_records) keep_record(call);
}

void keep_record(const Call& call) {
  const GroupState& state = *call.group;
  WorldState& world = *state.world;
  const Group& group = state.lane_of != nullptr ? state.lane_of->group : state.group;  // which outlives a lane
  const auto record = [&](Operation operation, ElementType type, int peer, std::size_t elements, std::uint64_t bytes) {
    world.rank(state.group.global(call.rank))
        .records.push_back({operation, type, call.options.algorithm, state.id, group.axis, group.index, group.size(),
                            peer, elements, bytes, call.tag});
  };
  if (call.operation == Operation::exchange) {
    for (const Part& part : call.sends) {
      record(Operation::send, part.type, to_int(part.peer), part.count, part.count * size_of(part.type));
    }
    for (const Part& part : call.recvs) record(Operation::recv, part.type, to_int(part.peer), part.count, 0);
    return;
  }
  record(call.operation, call.type, call.root, call.operation == Operation::recv ? call.out_count : call.in_count,
         bytes_sent(call));
}

}  // namespace shardproof::internal
