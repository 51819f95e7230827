// Causes where tokens are served by other experts than those that they chose.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "emu/diagnose/internal/moe_slots.h"
#include "emu/plan/deployment.h"

namespace shardproof::diagnosis {
namespace {

/// Where the layer's physical experts lie.
class Places {
 public:
  explicit Places(const WrongTap& wrong)
      : plan_(wrong.model.plan()),
        layer_(wrong.layer),
        deployment_(deploy(plan_.model, plan_.parallel, plan_.workload)) {}

  /// The place along ep that serves the token.
  int owner(std::int64_t row, std::int64_t expert) const {
    return serving_ep(plan_.model, deployment_, layer_, row, expert);
  }
  /// The expert that another owner has in that place: the k-th for its k-th; -1 where it has fewer.
  std::int64_t at_owner(std::int64_t row, std::int64_t expert, int other) const {
    const std::int64_t physical = physical_expert(plan_.model, deployment_, layer_, row, expert);
    const std::int64_t place = physical - held_by(owner(row, expert)).begin;
    const Range held = held_by(other);
    if (place >= held.count) return -1;
    return deployment_.layouts.front().logical_expert(layer_, held.begin + place);
  }

 private:
  Range held_by(int owner) const {
    const FeedForwardSpec& spec = plan_.model.layers[layer_].feed_forward;
    return partition(spec.num_experts + plan_.parallel.experts.redundant, plan_.parallel.ep, owner);
  }

  const Plan& plan_;
  int layer_;
  Deployment deployment_;
};

/// Slots whose expert the map takes for another have that one's output; -1: as they are.
template <class Map>
bool served_by(const WrongTap& wrong, const MoeSlots& moe, const Map& map) {
  return moe.explained_by_outputs([&](std::size_t i, std::size_t s) -> Row {
    const std::int64_t expert = map(wrong.rows[i].row, moe.slots(i).experts[s]);
    if (expert < 0) return {};
    return wrong.model.expert_output(wrong.layer, wrong.rows[i].row, {wrong.layer, expert});
  });
}

/// The experts of the next owners.
std::optional<Cause> rotated_owners_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const int ep = wrong.model.plan().parallel.ep;
  if (ep < 2) return std::nullopt;
  const Places places(wrong);
  for (int shift = 1; shift < ep; ++shift) {
    const auto next = [&](std::int64_t row, std::int64_t expert) {
      return places.at_owner(row, expert, (places.owner(row, expert) + shift) % ep);
    };
    if (!served_by(wrong, moe, next)) continue;
    return Cause{"expert_map",
                 fmt::format("tokens of the experts of ep e got the outputs of those of ep (e + {}) mod {} "
                             "on {}",
                             shift, ep, ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> expert_map_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const Plan& plan = wrong.model.plan();
  const std::int64_t experts = plan.model.layers[wrong.layer].feed_forward.num_experts;
  for (std::int64_t shift = 1; shift < experts; ++shift) {
    const auto shifted = [&](std::int64_t, std::int64_t expert) { return (expert + shift) % experts; };
    if (!served_by(wrong, moe, shifted)) continue;
    return Cause{"expert_map", fmt::format("tokens of expert e got the output of expert (e + {}) mod {} on {}", shift,
                                           experts, ranks_of(wrong.rows))};
  }
  if (const auto maps = expert_maps_of(plan.model, plan.parallel, plan.workload.routing)) {
    const ExpertMap& map = (*maps)[static_cast<std::size_t>(wrong.layer)];
    if (served_by(wrong, moe, [&](std::int64_t, std::int64_t expert) { return map.logical(expert); })) {
      return Cause{"expert_map",
                   fmt::format("tokens of expert e got the output of physical expert e on {}: the map from "
                               "logical to physical experts is not applied",
                               ranks_of(wrong.rows))};
    }
  }
  return rotated_owners_cause(wrong, moe);
}

std::optional<Cause> exchanged_experts_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const std::int64_t experts = wrong.model.plan().model.layers[wrong.layer].feed_forward.num_experts;
  // A wrong row has chosen it.
  const std::set<std::int64_t> chosen(moe.slots(0).experts.begin(), moe.slots(0).experts.end());
  for (const bool both : {false, true}) {
    for (const std::int64_t one : chosen) {
      for (std::int64_t other = 0; other < experts; ++other) {
        const auto exchanged = [&](std::int64_t, std::int64_t expert) {
          return expert == one ? other : both && expert == other ? one : -1;
        };
        if (other == one || !served_by(wrong, moe, exchanged)) continue;
        return Cause{"expert_map", fmt::format("tokens of expert {} got the output of expert {}{} on {}", one, other,
                                               both ? ", and the reverse," : "", ranks_of(wrong.rows))};
      }
    }
  }
  return std::nullopt;
}

std::optional<Cause> believed_owner_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const int ep = wrong.model.plan().parallel.ep;
  const Places places(wrong);
  const auto predicted = [&](std::size_t i, int member, int shift) {
    const Slots& slots = moe.slots(i);
    const std::int64_t row = moe.row(i).row;
    Row sum(moe.row(i).got.size(), 0.0);
    for (std::size_t s = 0; s < slots.experts.size(); ++s) {
      const int owner = places.owner(row, slots.experts[s]);
      const auto add = [&](const Row& output) {
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += slots.weights[s] * output[c];
      };
      if (owner != member) add(slots.outputs[s]);
      const std::int64_t served = places.at_owner(row, slots.experts[s], member);
      if ((owner + shift) % ep != member || served < 0) continue;
      add(wrong.model.expert_output(wrong.layer, row, {wrong.layer, served}));
    }
    wrong.model.finish(sum);
    return sum;
  };
  for (int member = 0; member < ep; ++member) {
    for (int shift = 1; shift < ep; ++shift) {
      std::size_t i = 0;
      while (i < moe.size() && close(predicted(i, member, shift), moe.row(i).got, wrong.tolerance)) ++i;
      if (i < moe.size()) continue;
      return Cause{"expert_map", fmt::format("ep {} serves the tokens of the experts of ep {} with its own, on {}",
                                             member, (member + ep - shift) % ep, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
