// Which copies of its experts a layer has, and who holds them: physical experts, of which several may be one logical
// expert.
//
// As vLLM's and DeepSeek's balancers have it: E logical experts and R redundant ones make E + R physical experts,
// spread over ep in order, as even as they divide. A token's router chooses logical experts; which of their replicas
// serves it follows from its place alone, so that every rank would choose alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/plan/partition.h"

namespace shardproof {

/// `parallel.experts`.
struct ExpertPlacement {
  enum class Map {
    linear,       ///< physical expert i is logical expert i % E
    round_robin,  ///< the same, dealt out over ep one at a time
    balanced,     ///< by workload.routing.counts: whoever serves most is copied, and ranks are filled evenly
    given,
  };
  enum class Replica {
    round_robin,  ///< by the token's row
    nearest,      ///< on the token's own ep rank where there is one, else by its row
  };
  std::int64_t redundant = 0;
  Map map = Map::linear;
  /// Of Map::given: the logical expert of each physical one; a row for each layer, or one for all.
  std::vector<std::vector<std::int64_t>> given = {};
  Replica replica = Replica::round_robin;
  bool operator==(const ExpertPlacement&) const = default;
};

/// Of one layer.
class ExpertMap {
 public:
  /// `logical`: the expert that each physical one is; each of `experts` at least once.
  ExpertMap(std::vector<std::int64_t> logical, std::int64_t experts);

  std::int64_t logical(std::int64_t physical) const { return logical_[static_cast<std::size_t>(physical)]; }
  std::span<const std::int64_t> logical() const { return logical_; }
  std::span<const std::int32_t> replicas(std::int64_t expert) const {
    return replicas_[static_cast<std::size_t>(expert)];
  }
  /// The physical expert that serves the token of that global row; `own` are those of the rank that routes it.
  std::int32_t choose(std::int64_t expert, std::int64_t row, Range own, ExpertPlacement::Replica rule) const;
  /// Slots of the physical experts where logical ones have so many and tokens go round: the first replicas one more.
  std::vector<std::int64_t> spread(std::span<const std::int64_t> slots) const;

 private:
  std::vector<std::int64_t> logical_;
  std::vector<std::vector<std::int32_t>> replicas_;
};

/// The map of a layer of `experts` over `ep` ranks; `slots` of each expert as they were counted, or none: even. The
/// placement must be valid (validate.h); Map::given takes `row` of it.
ExpertMap make_expert_map(const ExpertPlacement& placement, std::int64_t experts, int ep,
                          std::span<const std::int64_t> slots, std::int64_t row);

}  // namespace shardproof
