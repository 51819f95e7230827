#include "collectives/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "collectives/call_hook.h"
#include "collectives/internal/state.h"

namespace shardproof {

namespace {

using internal::Failure;
using internal::GroupState;
using internal::RankState;
using internal::WorldState;

void start_rank(void* context, std::size_t index) noexcept {
  WorldState& world = *static_cast<WorldState*>(context);
  RankState& rank = world.ranks[index];
  try {
    rank.task = (*world.program)(GlobalRank{static_cast<int>(index)});
    if (!rank.task.valid()) throw std::invalid_argument("the program returned no task");
  } catch (...) {
    rank.start_error = std::current_exception();
    return;
  }
  rank.task.handle().resume();
}

void reset(WorldState& world) {
  for (RankState& rank : world.ranks) {
    rank.task = {};
    rank.start_error = nullptr;
  }
  for (RankState& rank : world.ranks) internal::forget_issued(rank);
  for (const auto& group : world.groups) {
    group->arrived.store(0, std::memory_order_relaxed);
    for (internal::Member& member : group->members) member = {};
    group->lanes.clear();
    std::fill(group->asked.begin(), group->asked.end(), 0);
    if (group->mailboxes == nullptr) continue;
    for (std::size_t i = 0; i < group->members.size(); ++i) {
      group->mailboxes[i].sends.clear();
      group->mailboxes[i].recvs.clear();
    }
  }
  world.failures.clear();
  world.issues.store(false, std::memory_order_relaxed);
  world.executor = nullptr;
  world.program = nullptr;
}

std::exception_ptr rank_error(const WorldState& world, GlobalRank rank, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const CollectiveError&) {
    return std::current_exception();
  } catch (const std::exception& e) {
    return std::make_exception_ptr(RankError(rank, e.what(), internal::make_wait_graph(world)));
  } catch (...) {
    return std::make_exception_ptr(RankError(rank, "unknown exception", internal::make_wait_graph(world)));
  }
}

// The ranks that have not finished and wait in no call.
std::vector<GlobalRank> outside_any_call(const WorldState& world) {
  std::vector<bool> waits(world.ranks.size());
  const auto note = [&](const internal::Call* call, GlobalRank rank) {
    if (call != nullptr && internal::is_awaited(*call)) waits[static_cast<std::size_t>(to_int(rank))] = true;
  };
  const auto note_members = [&](const GroupState& meeting) {
    for (std::size_t i = 0; i < meeting.members.size(); ++i) note(meeting.members[i].call, meeting.group.members[i]);
  };
  for (const auto& group : world.groups) {
    note_members(*group);
    for (const auto& [number, lane] : group->lanes) note_members(*lane);
    if (group->mailboxes == nullptr) continue;
    for (std::size_t i = 0; i < group->members.size(); ++i) {
      for (const auto* messages : {&group->mailboxes[i].sends, &group->mailboxes[i].recvs}) {
        for (const auto& message : *messages) note(message.call, group->group.global(message.call->rank));
      }
    }
  }
  std::vector<GlobalRank> outside;
  for (std::size_t i = 0; i < waits.size(); ++i) {
    if (!waits[i] && !world.ranks[i].task.done()) outside.push_back(GlobalRank{static_cast<int>(i)});
  }
  return outside;
}

// What the run ended with; null if every rank finished.
std::exception_ptr error_of(WorldState& world) {
  bool all_done = true;
  for (std::size_t i = 0; i < world.ranks.size(); ++i) {
    const RankState& rank = world.ranks[i];
    all_done = all_done && rank.task.done();
    const std::exception_ptr error = rank.start_error ? rank.start_error : rank.task.error();
    if (error) {
      world.failures.push_back({.rank = GlobalRank{static_cast<int>(i)}, .error = error});
      continue;
    }
    for (const std::shared_ptr<internal::Issued>& issued : rank.issued) {
      if (!issued->forsaken && !rank.task.done()) continue;
      world.failures.push_back({.rank = GlobalRank{static_cast<int>(i)}, .error = internal::never_awaited(*issued)});
      break;
    }
  }
  if (world.failures.empty() && all_done) return nullptr;
  if (world.failures.empty()) {
    // Calls that differ among those who have come explain a rendezvous that never completes.
    for (const GroupState* group : internal::in_order(world)) {
      try {
        internal::check_outstanding(*group);
      } catch (const CollectiveMismatch&) {
        return std::current_exception();
      }
    }
    if (world.executor->conclusive()) return std::make_exception_ptr(DeadlockError(internal::make_wait_graph(world)));
    return std::make_exception_ptr(NoProgressError(internal::make_wait_graph(world), outside_any_call(world)));
  }
  const auto first =
      std::min_element(world.failures.begin(), world.failures.end(), [](const Failure& a, const Failure& b) {
        if (a.rank != b.rank) return a.rank < b.rank;
        if (a.group == b.group) return a.sequence < b.sequence;
        if (a.group == nullptr || b.group == nullptr) return a.group != nullptr;
        return internal::comes_before(*a.group, *b.group);
      });
  return rank_error(world, first->rank, first->error);
}

GroupState& group_of(const WorldState& world, GroupId id) {
  const auto index = static_cast<int>(id);
  if (index < 0 || index >= static_cast<int>(world.groups.size())) {
    throw std::invalid_argument(
        fmt::format("there is no group {} in a world of {} groups", index, world.groups.size()));
  }
  return *world.groups[static_cast<std::size_t>(index)];
}

// "0-3,7": three or more that follow one another are a range, and of many pieces the first are shown.
std::string list_text(const std::vector<GlobalRank>& members) {
  constexpr int kPieces = 16;
  std::string text;
  int pieces = 0;
  for (std::size_t i = 0; i < members.size(); ++pieces) {
    if (pieces == kPieces) return text + fmt::format(",... {} ranks", members.size());
    std::size_t last = i;
    while (last + 1 < members.size() && to_int(members[last + 1]) == to_int(members[last]) + 1) ++last;
    if (last < i + 2) last = i;
    text += fmt::format("{}{}", i == 0 ? "" : ",", to_int(members[i]));
    if (last > i) text += fmt::format("-{}", to_int(members[last]));
    i = last + 1;
  }
  return text;
}

GroupState& add(WorldState& world, std::string axis, std::vector<GlobalRank> members) {
  if (members.empty()) throw std::invalid_argument(fmt::format("a group of axis {} without members", axis));
  std::unordered_set<int> seen;
  for (const GlobalRank member : members) {
    if (to_int(member) < 0 || to_int(member) >= world.size) {
      throw std::invalid_argument(
          fmt::format("rank {} of a group of axis {} is not in a world of {} ranks", to_int(member), axis, world.size));
    }
    if (!seen.insert(to_int(member)).second) {
      throw std::invalid_argument(fmt::format("rank {} is twice in a group of axis {}", to_int(member), axis));
    }
  }
  auto group = std::make_unique<GroupState>();
  group->world = &world;
  group->id = GroupId{static_cast<int>(world.groups.size())};
  group->group.index = world.groups_of_axis[axis]++;
  group->group.axis = std::move(axis);
  group->group.members = std::move(members);
  group->ascending = std::is_sorted(group->group.members.begin(), group->group.members.end());
  group->members.resize(group->group.members.size());
  world.groups.push_back(std::move(group));
  return *world.groups.back();
}

GroupState& add_listed(WorldState& world, const std::string& label, std::vector<GlobalRank> members) {
  GroupState& group = add(world, label, std::move(members));
  group.listed = true;
  group.asked.assign(group.members.size(), 0);
  group.group.index = 0;
  group.group.own_name = label + "[" + list_text(group.group.members) + "]";
  return group;
}

Communicator communicator_of(GroupState& group, GlobalRank rank) {
  const auto& members = group.group.members;
  // Most groups list their ranks in ascending order.
  const auto found = group.ascending ? std::lower_bound(members.begin(), members.end(), rank)
                                     : std::find(members.begin(), members.end(), rank);
  if (found == members.end() || *found != rank) {
    throw std::invalid_argument(fmt::format("rank {} is not in {}", to_int(rank), group.group.name()));
  }
  const auto index = found - members.begin();
  if (group.listed) group.asked[static_cast<std::size_t>(index)] = 1;
  return Communicator(group, GroupRank{static_cast<int>(index)});
}

}  // namespace

bool internal::comes_before(const GroupState& a, const GroupState& b) {
  if (a.listed != b.listed) return b.listed;
  if (!a.listed) return a.id < b.id;
  return std::tie(a.group.members, a.group.axis) < std::tie(b.group.members, b.group.axis);
}

std::vector<const GroupState*> internal::in_order(const WorldState& world) {
  std::vector<const GroupState*> groups;
  for (const auto& group : world.groups) groups.push_back(group.get());
  std::sort(groups.begin(), groups.end(),
            [](const GroupState* a, const GroupState* b) { return comes_before(*a, *b); });
  return groups;
}

World::World(int size, WorldOptions options) {
  if (size < 1 || size > kMaxRanks) {
    throw std::invalid_argument(fmt::format("a world of {} ranks; from 1 to {} are possible", size, kMaxRanks));
  }
  state_ = std::make_unique<WorldState>(size, options);
}
World::World(World&&) noexcept = default;
World& World::operator=(World&&) noexcept = default;
World::~World() = default;

int World::size() const {
  return state_->size;
}

GroupId World::add_group(std::string axis, std::vector<GlobalRank> members) {
  return add(*state_, std::move(axis), std::move(members)).id;
}

GroupId World::add_listed_group(std::vector<GlobalRank> members) {
  return add_listed(*state_, "ranks", std::move(members)).id;
}

int World::group_count() const {
  return static_cast<int>(state_->groups.size());
}

const Group& World::group(GroupId id) const {
  return group_of(*state_, id).group;
}

Communicator World::communicator(GroupId id, GlobalRank rank) const {
  return communicator_of(group_of(*state_, id), rank);
}

Communicator labelled_group(const Communicator& of_rank, const std::string& label,
                            const std::vector<GlobalRank>& members) {
  if (of_rank.state() == nullptr) throw std::logic_error("a communicator that belongs to no world was used");
  WorldState& world = *of_rank.state()->world;
  const std::lock_guard lock(world.labelled_mutex);
  auto found = world.labelled.find({label, members});
  if (found == world.labelled.end()) {
    found = world.labelled.emplace(std::pair(label, members), &add_listed(world, label, members)).first;
  }
  return communicator_of(*found->second, of_rank.global_rank());
}

void World::set_hook(CallHook* hook) {
  state_->hook = hook;
}

void World::keep_records(bool keep) {
  state_->options.keep_records = keep;
}

void redirect(internal::Call& call, const Communicator& to) {
  call.group = to.state();
  call.rank = to.rank();
}

void World::run(Executor& executor, const Program& program) {
  WorldState& world = *state_;
  if (world.executor != nullptr) throw std::logic_error("World::run was called while the same world is running");
  reset(world);
  for (RankState& rank : world.ranks) rank.records.clear();
  world.executor = &executor;
  world.program = &program;
  executor.post({start_rank, &world, world.ranks.size()});
  executor.run();
  const std::exception_ptr error = error_of(world);
  reset(world);
  if (error) std::rethrow_exception(error);
}

const std::vector<CollectiveRecord>& World::records(GlobalRank rank) const {
  if (to_int(rank) < 0 || to_int(rank) >= state_->size) {
    throw std::invalid_argument(fmt::format("there is no rank {} in a world of {} ranks", to_int(rank), state_->size));
  }
  return state_->rank(rank).records;
}

}  // namespace shardproof
