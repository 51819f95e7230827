// A cluster of virtual GPU ranks on a mesh, and what a rank's program sees of it.
//
//   Task<> program(Rank& rank) {
//     ...
//     co_await rank.tp().all_reduce(y.span());
//     rank.tap<float>("linear.output", y, Placement::replicate(tokens, width));
//   }
//   Cluster cluster(Parallel{.tp = 4});
//   TbbExecutor executor;
//   cluster.run(executor, program, &sink);
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/executor.h"
#include "collectives/task.h"
#include "collectives/world.h"
#include "emu/plan/mesh.h"
#include "emu/run/tap.h"
#include "emu/run/trace.h"

namespace shardproof {

class FaultInjector;

inline constexpr std::array kAxes{Axis::tp, Axis::cp, Axis::dp, Axis::pp, Axis::etp, Axis::ep, Axis::edp};

/// One virtual GPU, as its program sees it.
class Rank {
 public:
  GlobalRank id() const { return id_; }
  const Coordinates& at() const { return at_; }

  /// The communicator of the group along an axis.
  Communicator& on(Axis axis) { return communicators_[static_cast<std::size_t>(axis)]; }
  const Communicator& on(Axis axis) const { return communicators_[static_cast<std::size_t>(axis)]; }
  Communicator& tp() { return on(Axis::tp); }
  Communicator& cp() { return on(Axis::cp); }
  Communicator& dp() { return on(Axis::dp); }
  Communicator& pp() { return on(Axis::pp); }
  Communicator& etp() { return on(Axis::etp); }
  Communicator& ep() { return on(Axis::ep); }
  Communicator& edp() { return on(Axis::edp); }

  /// Hands a tensor to whoever holds the run to a reference; costs nothing when nobody does.
  template <class T>
  void tap(std::string_view name, ops::MatrixView<const T> part, const Placement& placement) {
    if (sink_ != nullptr) sink_->tap(id_, {.id = {}, .name = name}, placement, part);
  }
  template <class T>
  void tap(const TapId& id, ops::MatrixView<const T> part, const Placement& placement) {
    if (sink_ != nullptr) sink_->tap(id_, {.id = id, .name = {}}, placement, part);
  }
  bool tapped() const { return sink_ != nullptr; }
  /// Somebody takes the inner taps (TapRow::inner).
  bool tapped_inside() const { return sink_ != nullptr && sink_->inner(); }

  /// Where the rank's program leaves its records; null when nobody asks for them.
  RankTrace* trace() const { return trace_; }

 private:
  friend class Cluster;

  GlobalRank id_{};
  Coordinates at_;
  std::vector<Communicator> communicators_;  // indexed by Axis
  TapSink* sink_ = nullptr;
  RankTrace* trace_ = nullptr;
};

class Cluster {
 public:
  using Program = std::function<Task<>(Rank&)>;

  /// One group for every fibre of every axis of the mesh.
  explicit Cluster(const Parallel& parallel);

  const Mesh& mesh() const { return mesh_; }
  int size() const { return mesh_.world(); }
  World& world() { return world_; }
  const World& world() const { return world_; }

  /// Who looks at a run while it goes on; each may be null.
  struct Observers {
    TapSink* taps = nullptr;
    FaultInjector* fault = nullptr;            ///< sees and may change every call
    std::vector<RankTrace>* traces = nullptr;  ///< becomes the records of every rank, by rank
    bool keep_calls = false;                   ///< the World's own records (World::records)
  };

  /// Runs the program once on every rank, to the end. Throws DeadlockError, CollectiveMismatch, or a rank's own error
  /// (see World::run); the records made until then remain.
  void run(Executor& executor, const Program& program, const Observers& observers);
  void run(Executor& executor, const Program& program) { run(executor, program, Observers{}); }

  const Rank& rank(GlobalRank id) const { return *ranks_[static_cast<std::size_t>(to_int(id))]; }

 private:
  Mesh mesh_;
  World world_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace shardproof
