// Where tokens are said to go, for runs that compute no router: the routing of a dry run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/model/config.h"
#include "emu/plan/expert_map.h"
#include "emu/plan/plan.h"
#include "emu/plan/token_rows.h"
#include "ops/matrix.h"

namespace shardproof {

/// Router choices of a run: per layer, [tokens of the global batch, top_k] expert ids.
using RoutingReplay = std::vector<ops::Matrix<std::int32_t>>;

/// Deals the slots of tokens to experts by given shares, a token's to as many experts: systematic sampling.
///
/// The slots that the experts serve lie one after another on a circle, once around for every choice of a token; token t
/// takes the slots at one angle, which steps around by a fraction near the golden ratio. So any `period` consecutive
/// tokens give expert e exactly counts[e] slots, and any run of tokens nearly its share.
class SlotCycle {
 public:
  /// counts add up to top_k * period; none is greater than period, which is at most 2^31.
  SlotCycle(std::span<const std::int64_t> counts, std::int64_t top_k);

  /// Adds to each expert the slots that it serves of tokens `begin` up to `end`, in time that does not grow with them.
  void add_slots(std::int64_t begin, std::int64_t end, std::span<std::int64_t> slots) const;

 private:
  /// Slots before each end of the first `rest` tokens, fewer than a period.
  std::vector<std::int64_t> slots_of_rest(std::int64_t rest) const;
  /// Slots of the first `tokens` tokens that the experts up to each one serve.
  std::vector<std::int64_t> slots_before_ends(std::int64_t tokens) const;

  std::int64_t period_ = 1;
  std::int64_t step_ = 1;
  std::vector<std::int64_t> ends_;  ///< where each expert's slots end; the first begin at 0
  /// Slots before each end of so many tokens, fewer than a period: of short periods all of them, else none.
  std::vector<std::vector<std::int64_t>> of_rest_;
};

/// The experts of a token, as a function of layer and global row, and how many slots come of it.
class StatedRouting {
 public:
  /// As the plan's workload says. Even: of consecutive tokens every expert of a layer serves as many slots as any
  /// other, or nearly.
  static StatedRouting of(const Plan& plan);
  /// The choices of a run; `choices` outlives this.
  static StatedRouting of(const RoutingReplay& choices);

  /// Slots of these rows that each expert serves: [experts].
  std::vector<std::int64_t> slots(int layer, const TokenRows& rows, std::int64_t experts) const;
  /// The same where experts have replicas, of which those in `own` are the router's: [physical experts]. The choices of
  /// a run are chosen from as it does; of stated ones every replica serves as many, or nearly.
  std::vector<std::int64_t> physical_slots(int layer, const TokenRows& rows, std::int64_t experts, const ExpertMap& map,
                                           Range own, ExpertPlacement::Replica rule) const;
  /// Layers of one kind choose alike, so that what is counted for one holds for all.
  bool same_in_every_layer() const { return replay_ == nullptr && by_kind_; }

 private:
  StatedRouting() = default;
  const SlotCycle& cycle(int layer) const;

  std::vector<SlotCycle> cycles_;
  std::vector<int> cycle_of_layer_;
  bool by_kind_ = false;
  const RoutingReplay* replay_ = nullptr;
};

}  // namespace shardproof
