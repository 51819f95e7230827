// All virtual ranks of a run, their groups, and the run itself.
//
//   World world(4);
//   const GroupId all = world.add_group("world", {GlobalRank{0}, GlobalRank{1}, GlobalRank{2}, GlobalRank{3}});
//   TbbExecutor executor;
//   world.run(executor, [&](GlobalRank rank) -> Task<> { return program(world.communicator(all, rank)); });
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/errors.h"
#include "collectives/executor.h"
#include "collectives/group.h"
#include "collectives/record.h"
#include "collectives/task.h"

namespace shardproof {

class CallHook;

namespace internal {
struct WorldState;
}

struct WorldOptions {
  bool keep_records = true;   ///< one CollectiveRecord per call and rank; off, records() stays empty
  bool check_overlap = true;  ///< compare the buffers of all ranks of a collective, O(n log n)
};

inline constexpr int kMaxRanks = 1 << 20;

/// The way of a communicator's rank into the group of this label and these members, "label[3,1]", which is made when
/// the first of them asks for it: groups of the same members under other labels are others. By any number of ranks at
/// once; not beside World::add_listed_group. Throws as World::add_group, and std::invalid_argument when the rank is no
/// member.
Communicator labelled_group(const Communicator& of_rank, const std::string& label,
                            const std::vector<GlobalRank>& members);

class World {
 public:
  using Program = std::function<Task<>(GlobalRank)>;

  /// Throws std::invalid_argument unless 1 <= size <= kMaxRanks.
  explicit World(int size, WorldOptions options = {});
  World(World&&) noexcept;
  World& operator=(World&&) noexcept;
  ~World();

  int size() const;
  /// Throws std::invalid_argument when a member is outside the world, listed twice, or none is given.
  GroupId add_group(std::string axis, std::vector<GlobalRank> members);
  /// A group that its ranks find by its members during a run, whoever comes first: it is named after them,
  /// "ranks[3,1]", and that a rank has asked for it by communicator() is known to the wait-for graph. One caller at a
  /// time, of this and of communicator(). Throws as add_group.
  GroupId add_listed_group(std::vector<GlobalRank> members);
  int group_count() const;
  /// Throws std::invalid_argument for an id that is none of this world's.
  const Group& group(GroupId id) const;
  /// Throws std::invalid_argument when there is no such group, or the rank is not a member.
  Communicator communicator(GroupId id, GlobalRank rank) const;

  /// Whom to show every call from now on; null for none. The hook must outlive the runs.
  void set_hook(CallHook* hook);

  /// Whether runs from now on keep records, in place of WorldOptions::keep_records; not during a run.
  void keep_records(bool keep);

  /// Runs program(rank) for every rank, until no rank can run any further. Returns when all have finished. Otherwise
  /// throws, after every frame has been destroyed, the error of the lowest rank among: a CollectiveMismatch (counted
  /// for the lowest rank that takes part), an InvalidCall, a RankError for anything else that a program threw; and
  /// DeadlockError when ranks wait for ever without any of these (NoProgressError where the executor gave up). Ranks
  /// not held up by a failed one run on until they finish or wait, so what is thrown does not depend on the schedule.
  /// The world can run again afterwards.
  ///
  /// Throws std::logic_error when called from a program of its own.
  ///
  /// `program` must return the task of a coroutine that owns what it needs: a lambda that is itself a coroutine must
  /// outlive the run, with its captures.
  void run(Executor& executor, const Program& program);

  /// What the rank communicated in the last run, in its program's order; empty if that run kept no records.
  /// Throws std::invalid_argument when there is no such rank.
  const std::vector<CollectiveRecord>& records(GlobalRank rank) const;

 private:
  std::unique_ptr<internal::WorldState> state_;
};

}  // namespace shardproof
