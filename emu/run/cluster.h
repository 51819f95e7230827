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
#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
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

class Cluster;
class FaultInjector;

inline constexpr std::array kAxes{Axis::tp, Axis::cp,  Axis::dp,  Axis::pp,     Axis::etp,
                                  Axis::ep, Axis::edp, Axis::dcp, Axis::cp_a2a, Axis::cp_p2p};
static_assert(kAxes.size() == kAxisCount);

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
  Communicator& dcp() { return on(Axis::dcp); }
  /// Every rank of the world.
  const Communicator& world() const { return world_; }
  /// These ranks, this one among them, in this order. All of them name the same list; who names another is in another
  /// group. Throws std::invalid_argument for a list that is empty, holds a rank twice or one that does not exist, or
  /// does not hold this one.
  Communicator group(const std::vector<int>& ranks);
  /// `co_await rank.group(3, 1).all_reduce(y)`: GCC 12 compiles no list in braces inside a co_await.
  template <std::same_as<int>... Ranks>
  Communicator group(int first, Ranks... more) {
    return group(std::vector<int>{first, more...});
  }

  /// Hands a tensor to whoever holds the run to a reference; costs nothing when nobody does. A program that goes in
  /// steps taps the same name in each, with its number. Throws std::invalid_argument for no name or a step below -1,
  /// and InvalidCall where the part is the output of a call of the rank that has not been awaited.
  template <class T>
  void tap(std::string_view name, ops::MatrixView<const T> part, const Placement& placement, int step = -1) {
    if (name.empty() || step < -1) throw std::invalid_argument("a tap needs a name, and a step of at least 0 or none");
    if (sink_ == nullptr) return;
    refuse_early_read(name, part);
    sink_->tap(id_, {.id = {.step = step}, .name = name}, placement, part);
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

  template <class T>
  void refuse_early_read(std::string_view name, const ops::MatrixView<const T>& part) const {
    if (part.size() == 0) return;
    const auto elements = static_cast<std::size_t>((part.rows - 1) * part.stride + part.cols);
    shardproof::refuse_early_read(world_, part.data, elements * sizeof(T), name);
  }

  GlobalRank id_{};
  Coordinates at_;
  std::vector<Communicator> communicators_;  // indexed by Axis
  Communicator world_;
  Cluster* cluster_ = nullptr;
  TapSink* sink_ = nullptr;
  RankTrace* trace_ = nullptr;
};

class Cluster {
 public:
  Cluster(Cluster&&) = delete;  // ranks refer to it
  using Program = std::function<Task<>(Rank&)>;

  /// One group for every fibre of every axis of the mesh. Throws std::invalid_argument as Mesh and World do: for
  /// degrees below 1, and a product that is more than kMaxRanks.
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
  friend class Rank;
  Communicator listed_group(const std::vector<int>& ranks, GlobalRank member);

  Mesh mesh_;
  World world_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::mutex listed_mutex_;
  std::map<std::vector<int>, GroupId> listed_;  // groups by list that some rank has asked for
};

}  // namespace shardproof
