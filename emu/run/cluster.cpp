#include "emu/run/cluster.h"

#include <string>
#include <utility>
#include <vector>

#include "emu/run/fault.h"

namespace shardproof {

Cluster::Cluster(const Parallel& parallel) : mesh_(parallel), world_(parallel.world()) {
  for (int rank = 0; rank < size(); ++rank) {
    auto made = std::make_unique<Rank>();
    made->id_ = GlobalRank{rank};
    made->at_ = mesh_.coordinates(rank);
    made->cluster_ = this;
    made->communicators_.reserve(kAxes.size());
    ranks_.push_back(std::move(made));
  }
  std::vector<GlobalRank> all;
  for (int rank = 0; rank < size(); ++rank) all.push_back(GlobalRank{rank});
  const GroupId world = world_.add_group("world", all);
  for (const GlobalRank id : all) ranks_[static_cast<std::size_t>(to_int(id))]->world_ = world_.communicator(world, id);
  for (const Axis axis : kAxes) {
    for (const std::vector<int>& members : mesh_.groups(axis)) {
      std::vector<GlobalRank> ids;
      for (const int member : members) ids.push_back(GlobalRank{member});
      const auto group = world_.add_group(std::string(to_string(axis)), ids);
      for (const GlobalRank id : ids) {
        ranks_[static_cast<std::size_t>(to_int(id))]->communicators_.push_back(world_.communicator(group, id));
      }
    }
  }
}

Communicator Cluster::listed_group(const std::vector<int>& ranks, GlobalRank member) {
  const std::lock_guard lock(listed_mutex_);
  auto found = listed_.find(ranks);
  if (found == listed_.end()) {
    std::vector<GlobalRank> members;
    for (const int rank : ranks) members.push_back(GlobalRank{rank});
    found = listed_.emplace(ranks, world_.add_listed_group(std::move(members))).first;
  }
  return world_.communicator(found->second, member);
}

Communicator Rank::group(const std::vector<int>& ranks) {
  return cluster_->listed_group(ranks, id_);
}

void Cluster::run(Executor& executor, const Program& program, const Observers& observers) {
  /// Shows the injector the rank instead of its number.
  class Hook final : public CallHook {
   public:
    Hook(const Cluster& cluster, FaultInjector& fault) : cluster_(cluster), fault_(fault) {}
    bool before(GlobalRank id, internal::Call& call) noexcept override {
      return fault_.before_call(cluster_.rank(id), call);
    }
    void after(GlobalRank id, internal::Call& call) noexcept override { fault_.after_call(cluster_.rank(id), call); }

   private:
    const Cluster& cluster_;
    FaultInjector& fault_;
  };
  std::unique_ptr<Hook> hook;
  if (observers.fault != nullptr) hook = std::make_unique<Hook>(*this, *observers.fault);
  world_.set_hook(hook.get());
  world_.keep_records(observers.keep_calls);
  if (observers.traces != nullptr) observers.traces->assign(ranks_.size(), {});
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i]->sink_ = observers.taps;
    ranks_[i]->trace_ = observers.traces != nullptr ? &(*observers.traces)[i] : nullptr;
  }
  world_.run(executor, [&](GlobalRank id) { return program(*ranks_[static_cast<std::size_t>(to_int(id))]); });
}

}  // namespace shardproof
