#include "collectives/internal/issued.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "collectives/call_handle.h"
#include "collectives/communicator.h"
#include "collectives/errors.h"
#include "collectives/internal/state.h"

namespace shardproof {
namespace internal {

namespace {

constexpr std::byte kCover{0xff};

struct Memory {
  std::byte* begin = nullptr;
  std::byte* end = nullptr;
  std::size_t size() const { return static_cast<std::size_t>(end - begin); }
};

Memory bytes_of(const void* data, std::size_t count, ElementType type) {
  auto* begin = static_cast<std::byte*>(const_cast<void*>(data));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  return data == nullptr ? Memory{} : Memory{begin, begin + count * size_of(type)};
}

bool overlap(const Memory& a, const Memory& b) {
  return a.begin < b.end && b.begin < a.end && a.begin != a.end && b.begin != b.end;
}

Memory input_of(const Issued& issued) {
  return reads_input(issued) ? bytes_of(issued.own_in, issued.in_count, issued.type) : Memory{};
}
Memory output_of(const Issued& issued) {
  return writes_output(issued) ? bytes_of(issued.own_out, issued.out_count, issued.type) : Memory{};
}

// The output without what of it is the input: before that and after.
std::array<Memory, 2> covered(const Issued& issued) {
  const Memory in = input_of(issued);
  const Memory out = output_of(issued);
  if (!overlap(in, out)) return {out, Memory{}};
  return {Memory{out.begin, std::max(out.begin, in.begin)}, Memory{std::min(out.end, in.end), out.end}};
}

GroupState& lane_of(GroupState& group, std::uint64_t number) {
  const std::lock_guard lock(group.lanes_mutex);
  std::unique_ptr<GroupState>& lane = group.lanes[number];
  if (lane != nullptr) return *lane;
  if (!group.unused_lanes.empty()) {
    lane = std::move(group.unused_lanes.back());
    group.unused_lanes.pop_back();
  } else {
    lane = std::make_unique<GroupState>();
    lane->world = group.world;
    lane->id = group.id;
    lane->group = group.group;
    lane->ascending = group.ascending;
    lane->members.resize(group.members.size());
    lane->lane_of = &group;
  }
  lane->lane = number;
  return *lane;
}

// The last rank to leave makes the lane free for others.
void leave_lane(GroupState& lane, GroupRank rank) {
  lane.members[static_cast<std::size_t>(to_int(rank))].call = nullptr;
  if (lane.left.fetch_add(1, std::memory_order_acq_rel) + 1 < lane.size()) return;
  lane.left.store(0, std::memory_order_relaxed);
  GroupState& group = *lane.lane_of;
  const std::lock_guard lock(group.lanes_mutex);
  auto node = group.lanes.extract(lane.lane);
  group.unused_lanes.push_back(std::move(node.mapped()));
}

std::shared_ptr<Issued> unused(RankState& rank) {
  if (rank.unused_issued.empty()) return std::make_shared<Issued>();
  std::shared_ptr<Issued> issued = std::move(rank.unused_issued.back());
  rank.unused_issued.pop_back();
  return issued;
}

void copy_call(const Call& given, Issued& issued) {
  static_cast<Call&>(issued) = given;
  issued.issued = true;
  issued.own_counts.assign(given.counts.begin(), given.counts.end());
  issued.own_recv_counts.assign(given.recv_counts.begin(), given.recv_counts.end());
  issued.counts = issued.own_counts;
  issued.recv_counts = issued.own_recv_counts;
  issued.asked = given.group;
  issued.own_in = given.in;
  issued.own_out = given.out;
  issued.input_replaced = false;
  issued.forsaken.store(false, std::memory_order_relaxed);
  issued.state.store(Issued::under_way, std::memory_order_relaxed);
}

// Copies the input, covers the output, and makes the call one on the copies.
void stage(Issued& issued) {
  const Memory in = reads_input(issued) ? bytes_of(issued.in, issued.in_count, issued.type) : Memory{};
  issued.staged_in.assign(in.begin, in.end);
  issued.staged_out.resize(writes_output(issued) ? issued.out_count * size_of(issued.type) : 0);
  for (const Memory& part : covered(issued)) {
    if (part.size() != 0) std::memset(part.begin, static_cast<int>(kCover), part.size());
  }
  issued.in = issued.staged_in.data();
  issued.out = issued.staged_out.data();
  // What a rank does not receive it only hands on, as the root of a broadcast does.
  if (!writes_output(issued)) issued.out = issued.staged_in.data();
  if (!reads_input(issued)) issued.in = issued.staged_out.data();
}

// The first byte is, and every other is as the one before it.
bool is_cover(const Memory& part) {
  return part.size() == 0 || (*part.begin == kCover && std::memcmp(part.begin, part.begin + 1, part.size() - 1) == 0);
}

// What is wrong with the buffers of a call that is awaited; empty when nothing is.
std::string misuse(const Issued& issued) {
  const auto element = [&](const std::byte* base, const std::byte* at) {
    return static_cast<std::size_t>(at - base) / size_of(issued.type);
  };
  const Memory in = input_of(issued);
  if (!issued.input_replaced && in.size() != 0 && std::memcmp(in.begin, issued.staged_in.data(), in.size()) != 0) {
    const auto differ = std::mismatch(in.begin, in.end, issued.staged_in.begin());
    return fmt::format("its input was written between issue and await, element {} for one",
                       element(in.begin, differ.first));
  }
  const Memory out = output_of(issued);
  for (const Memory& part : covered(issued)) {
    if (is_cover(part)) continue;
    const auto* const written = std::find_if(part.begin, part.end, [](std::byte byte) { return byte != kCover; });
    return fmt::format("its output was written between issue and await, element {} for one",
                       element(out.begin, written));
  }
  return {};
}

// What of a call under way the buffer overlaps; empty when nothing.
std::string overlap_text(const Issued& issued, const Memory& buffer, Access access) {
  const char* does = access == Access::read ? "reads" : "writes";
  if (overlap(buffer, output_of(issued))) return fmt::format("{} the output", does);
  if (access == Access::written && overlap(buffer, input_of(issued))) return fmt::format("{} the input", does);
  return {};
}

void check_buffer(const Call& call, const RankState& rank, const Memory& buffer, Access access) {
  for (const std::shared_ptr<Issued>& issued : rank.issued) {
    const std::string what = overlap_text(*issued, buffer, access);
    if (what.empty()) continue;
    if (issued->forsaken) std::rethrow_exception(never_awaited(*issued));
    throw InvalidCall(describe(call), fmt::format("it {} of a call that has not been awaited: {}", what,
                                                  describe(*issued).to_string()));
  }
}

}  // namespace

bool has_ended(const Call& call) {
  return call.issued && static_cast<const Issued&>(call).state.load(std::memory_order_acquire) == Issued::ended;
}

bool is_awaited(const Call& call) {
  return !call.issued || static_cast<const Issued&>(call).state.load(std::memory_order_acquire) == Issued::awaited;
}

bool is_forsaken(const Call& call) {
  return call.issued && static_cast<const Issued&>(call).forsaken.load(std::memory_order_acquire);
}

bool reads_input(const Call& call) {
  return call.operation != Operation::broadcast || to_int(call.rank) == call.root;
}

bool writes_output(const Call& call) {
  const bool is_root = to_int(call.rank) == call.root;
  if (call.operation == Operation::broadcast) return !is_root;
  return call.operation != Operation::reduce || is_root;
}

std::shared_ptr<Issued> issue(const Call& given) {
  WorldState& world = *given.group->world;
  const GlobalRank id = given.group->group.global(given.rank);
  RankState& rank = world.rank(id);
  std::shared_ptr<Issued> issued = unused(rank);
  copy_call(given, *issued);
  if (world.hook != nullptr) {
    issued->dropped = !world.hook->before(id, *issued);
    issued->input_replaced = issued->in != given.in;
    issued->asked = issued->group;
  }
  world.issues.store(true, std::memory_order_relaxed);
  rank.issued.push_back(issued);
  if (issued->dropped) {
    issued->state.store(Issued::ended, std::memory_order_relaxed);
    return issued;
  }
  stage(*issued);
  Member& member = issued->asked->members[static_cast<std::size_t>(to_int(issued->rank))];
  if (is_point_to_point(issued->operation)) {
    issued->sequence = member.point_to_point++;
  } else {
    issued->sequence = member.collectives++;
    issued->group = &lane_of(*issued->asked, member.issued++);
  }
  if (!arrive_issued(*issued)) end(*issued);
  return issued;
}

void end(Issued& issued) noexcept {
  if (issued.state.exchange(Issued::ended, std::memory_order_acq_rel) == Issued::awaited) issued.waiter.resume();
}

void settle(const std::shared_ptr<Issued>& issued) {
  const std::shared_ptr<Issued> kept = issued;
  WorldState& world = *kept->asked->world;
  const GlobalRank id = kept->asked->group.global(kept->rank);
  RankState& rank = world.rank(id);
  rank.issued.erase(std::find(rank.issued.begin(), rank.issued.end(), kept));
  std::string problem;
  if (!kept->dropped) {
    problem = misuse(*kept);
    if (problem.empty() && !kept->staged_out.empty()) {
      std::memcpy(kept->own_out, kept->staged_out.data(), kept->staged_out.size());
    }
    if (world.options.keep_records) keep_record(*kept);
    if (!is_point_to_point(kept->operation)) leave_lane(*std::exchange(kept->group, kept->asked), kept->rank);
    kept->in = kept->own_in;
    kept->out = kept->own_out;
  }
  if (world.hook != nullptr) world.hook->after(id, *kept);
  const CallInfo info = problem.empty() ? CallInfo{} : describe(*kept);
  rank.unused_issued.push_back(kept);
  if (!problem.empty()) throw InvalidCall(info, problem);
}

void check_under_way(const Call& call) {
  const RankState& rank = call.group->world->rank(call.group->group.global(call.rank));
  if (rank.issued.empty()) return;
  const bool sends_only = call.operation == Operation::send;
  if (call.operation != Operation::exchange) {
    if (reads_input(call)) check_buffer(call, rank, bytes_of(call.in, call.in_count, call.type), Access::read);
    if (writes_output(call) && !sends_only) {
      check_buffer(call, rank, bytes_of(call.out, call.out_count, call.type), Access::written);
    }
  }
  for (const Part& part : call.sends) {
    check_buffer(call, rank, bytes_of(part.source, part.count, part.type), Access::read);
  }
  for (const Part& part : call.recvs) {
    check_buffer(call, rank, bytes_of(part.target, part.count, part.type), Access::written);
  }
}

std::exception_ptr never_awaited(const Issued& issued) {
  return std::make_exception_ptr(InvalidCall(describe(issued), issued.forsaken
                                                                   ? "its handle was dropped without being awaited"
                                                                   : "it was never awaited before the rank returned"));
}

void forget_issued(RankState& rank) {
  for (const std::shared_ptr<Issued>& issued : rank.issued) issued->over = true;
  rank.issued.clear();
}

}  // namespace internal

void refuse_early_read(const Communicator& of_rank, const void* data, std::size_t bytes, std::string_view tap) {
  const internal::GroupState* group = of_rank.state();
  if (group == nullptr || !group->world->issues.load(std::memory_order_relaxed)) return;
  const internal::RankState& rank = group->world->rank(of_rank.global_rank());
  auto* const begin =
      static_cast<std::byte*>(const_cast<void*>(data));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  for (const std::shared_ptr<internal::Issued>& issued : rank.issued) {
    if (!internal::overlap({begin, begin + bytes}, internal::output_of(*issued))) continue;
    if (issued->forsaken) std::rethrow_exception(internal::never_awaited(*issued));
    throw InvalidCall(internal::describe(*issued),
                      fmt::format("the tap {} reads its output before it is awaited", tap));
  }
}

CallHandle::CallHandle(const PendingCall& call) : issued_(internal::issue(call.call_)) {}

CallHandle& CallHandle::operator=(CallHandle&& other) noexcept {
  if (issued_ != nullptr && this != &other) issued_->forsaken.store(true, std::memory_order_release);
  issued_ = std::move(other.issued_);
  return *this;
}

CallHandle::~CallHandle() {
  if (issued_ != nullptr) issued_->forsaken.store(true, std::memory_order_release);
}

void CallHandle::require_call() const {
  if (issued_ == nullptr) {
    throw std::logic_error("a handle without a call was awaited: awaited before, moved from, or made by default");
  }
  if (issued_->over) throw std::logic_error("a handle was awaited whose run has ended");
}

bool CallHandle::wait(std::coroutine_handle<> waiter) noexcept {
  // Once the call has ended, whoever ended it may resume the rank, and this handle be gone.
  internal::Issued& issued = *issued_;
  issued.waiter = waiter;
  return issued.state.exchange(internal::Issued::awaited, std::memory_order_acq_rel) != internal::Issued::ended;
}

void CallHandle::finish() {
  internal::settle(std::exchange(issued_, nullptr));
}

}  // namespace shardproof
