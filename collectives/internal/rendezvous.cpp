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

void resume_others(void* context, std::size_t index) noexcept {
  GroupState& state = *static_cast<GroupState*>(context);
  resume(state, index < state.last ? index : index + 1);
}

GlobalRank lowest(const Group& group) {
  return *std::min_element(group.members.begin(), group.members.end());
}

void run_piece(void* context, std::size_t piece) noexcept {
  GroupState& state = *static_cast<GroupState*>(context);
  Movement& movement = state.movement;
  try {
    move_piece(state, piece);
  } catch (...) {  // out of memory
    movement.failed.store(true, std::memory_order_relaxed);
    state.world->fail(lowest(state.group), std::current_exception());
  }
  if (movement.pieces_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  if (!movement.failed.load(std::memory_order_relaxed)) {
    state.world->executor->post({resume_all, &state, state.members.size()});
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
  throw InvalidCall(describe(call), fmt::format("the communicator of rank {} in {} is used by more than one rank",
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
  state.world->executor->post({resume_others, &state, state.members.size() - 1});
  return false;
}

}  // namespace

bool arrive(Call& call) noexcept {
  CallHook* hook = call.group->world->hook;
  if (hook != nullptr && !hook->before(call.group->group.global(call.rank), call)) {
    call.dropped = true;
    return false;
  }
  GroupState& state = *call.group;
  const auto rank = static_cast<std::size_t>(to_int(call.rank));
  Member& member = state.members[rank];
  if (is_point_to_point(call.operation)) {
    ++member.point_to_point;
    return arrive_point_to_point(call);
  }
  if (member.call != nullptr) {
    try {
      refuse_shared(call);
    } catch (...) {
      state.world->fail(state.group.global(call.rank), std::current_exception());
    }
    return true;
  }
  ++member.collectives;
  member.call = &call;
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < state.size()) return true;
  // Nobody can arrive for the next call before this one has resumed somebody.
  state.arrived.store(0, std::memory_order_relaxed);
  try {
    return complete(state, rank);
  } catch (...) {
    // Nobody is resumed: the ranks of this group stay where they are until the run has ended.
    state.world->fail(lowest(state.group), std::current_exception());
    return true;
  }
}

void leave(Call& call) {
  GroupState& state = *call.group;
  WorldState& world = *state.world;
  if (world.hook != nullptr) world.hook->after(state.group.global(call.rank), call);
  if (call.dropped) return;
  if (!is_point_to_point(call.operation)) state.members[static_cast<std::size_t>(to_int(call.rank))].call = nullptr;
  if (!world.options.keep_records) return;
  const auto record = [&](Operation operation, ElementType type, int peer, std::size_t elements, std::uint64_t bytes) {
    world.rank(state.group.global(call.rank))
        .records.push_back({operation, type, call.options.algorithm, state.id, state.group.axis, state.group.index,
                            state.size(), peer, elements, bytes, call.tag});
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
