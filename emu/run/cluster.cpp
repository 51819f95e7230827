#include "emu/run/cluster.h"

#include <string>

namespace shardproof {

std::int64_t Rank::collectives_done() const {
  return std::ssize(world_->records(id_));
}

Cluster::Cluster(const Parallel& parallel) : mesh_(parallel), world_(parallel.world()) {
  for (int rank = 0; rank < size(); ++rank) {
    auto made = std::make_unique<Rank>();
    made->id_ = GlobalRank{rank};
    made->at_ = mesh_.coordinates(rank);
    made->world_ = &world_;
    made->communicators_.reserve(kAxes.size());
    ranks_.push_back(std::move(made));
  }
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

void Cluster::run(Executor& executor, const Program& program, TapSink* sink) {
  for (const std::unique_ptr<Rank>& rank : ranks_) rank->sink_ = sink;
  world_.run(executor, [&](GlobalRank id) { return program(*ranks_[static_cast<std::size_t>(to_int(id))]); });
}

}  // namespace shardproof
