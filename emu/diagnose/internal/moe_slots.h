// The wrong rows of the experts' combined output, slot by slot.
#pragma once

#include <vector>

#include "emu/diagnose/internal/wrong_tap.h"

namespace shardproof::diagnosis {

using Row = std::vector<double>;

/// Subsets of more slots are not tried one by one, only all of them and each alone.
constexpr std::size_t kMaxSubsets = 6;

struct Slots {
  std::vector<std::int64_t> experts;
  Row weights;
  std::vector<Row> outputs;
};

class MoeSlots {
 public:
  /// `rows` outlive it.
  MoeSlots(const WrongTap& wrong, const std::vector<WrongRow>& rows) : wrong_(wrong), rows_(rows) {
    const ExpectedTap& ids = wrong.model.tap(wrong.layer, TapKind::router_choice);
    const ExpectedTap& weights = wrong.model.tap(wrong.layer, TapKind::router_weights);
    for (const WrongRow& row : rows) {
      Slots slots;
      for (std::int64_t s = 0; s < ids.cols; ++s) {
        slots.experts.push_back(static_cast<std::int64_t>(ids.at(row.row, s)));
        slots.weights.push_back(weights.at(row.row, s));
        slots.outputs.push_back(wrong.model.expert_output(wrong.layer, row.row, {wrong.layer, slots.experts.back()}));
      }
      slots_.push_back(std::move(slots));
    }
  }

  const Slots& slots(std::size_t i) const { return slots_[i]; }
  const WrongRow& row(std::size_t i) const { return rows_[i]; }
  std::size_t size() const { return slots_.size(); }

  /// All rows with other weights: `weights(i)` for the i-th wrong row.
  template <class Weights>
  bool explained_by_weights(const Weights& weights) const {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (!close(combine(weights(i), slots_[i].outputs, i), rows_[i].got, wrong_.tolerance)) return false;
    }
    return true;
  }

  /// Every wrong row with the outputs of some of its slots replaced by `output(i, slot)`; an empty one stays.
  template <class Output>
  bool explained_by_outputs(const Output& output) const {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      std::vector<Row> others;
      for (std::size_t s = 0; s < slots_[i].experts.size(); ++s) {
        Row other = output(i, s);
        if (other.empty()) other = slots_[i].outputs[s];
        others.push_back(std::move(other));
      }
      if (!some_subset_fits(i, others)) return false;
    }
    return true;
  }

  Row combine(const Row& weights, const std::vector<Row>& outputs, std::size_t i) const {
    Row sum(rows_[i].got.size(), 0.0);
    for (std::size_t s = 0; s < outputs.size(); ++s) {
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += weights[s] * outputs[s][c];
    }
    wrong_.model.finish(sum);
    return sum;
  }

 private:
  bool subset_fits(std::size_t i, const std::vector<Row>& others, const std::vector<bool>& taken) const {
    std::vector<Row> outputs;
    for (std::size_t s = 0; s < others.size(); ++s) outputs.push_back(taken[s] ? others[s] : slots_[i].outputs[s]);
    return close(combine(slots_[i].weights, outputs, i), rows_[i].got, wrong_.tolerance);
  }

  bool some_subset_fits(std::size_t i, const std::vector<Row>& others) const {
    const std::size_t slots = others.size();
    if (subset_fits(i, others, std::vector<bool>(slots, true))) return true;
    if (slots > kMaxSubsets) {
      for (std::size_t s = 0; s < slots; ++s) {
        std::vector<bool> one(slots, false);
        one[s] = true;
        if (subset_fits(i, others, one)) return true;
      }
      // A faulty owner's slots.
      const ModelConfig& config = wrong_.model.plan().model;
      const std::int64_t experts = config.layers[wrong_.layer].feed_forward.num_experts;
      const int ep = wrong_.model.plan().parallel.ep;
      for (int owner = 0; owner < ep; ++owner) {
        std::vector<bool> owned;
        for (const std::int64_t expert : slots_[i].experts) {
          owned.push_back(shard_of(experts, ep, expert) == owner);
        }
        if (subset_fits(i, others, owned)) return true;
      }
      return false;
    }
    for (unsigned mask = 1; mask + 1 < 1u << slots; ++mask) {
      std::vector<bool> taken;
      for (std::size_t s = 0; s < slots; ++s) taken.push_back((mask >> s & 1u) != 0);
      if (subset_fits(i, others, taken)) return true;
    }
    return false;
  }

  const WrongTap& wrong_;
  const std::vector<WrongRow>& rows_;
  std::vector<Slots> slots_;
};

/// The wrong rows, and the right ones that the same ranks routed: all of a rank's weights are wrong, or none. A row is
/// held by more ranks than the one that routed it.
std::vector<WrongRow> routed_beside(const WrongTap& wrong);
/// The rank whose sum of partial sums a row holds: that which routed it, or, where all of tp do, the row's own.
Coordinates summed_at(const WrongTap& wrong, const WrongRow& row);
/// The sum over ep, of what the experts of each rank make of a token.
std::optional<Cause> sum_over_ep_cause(const WrongTap& wrong);
/// Of a sum over etp: it ran over ep, whose ranks have other rows.
std::optional<Cause> reduced_over_ep_cause(const WrongTap& wrong, const MoeSlots& moe);
/// Tokens are served by other experts than those that they chose.
std::optional<Cause> expert_map_cause(const WrongTap& wrong, const MoeSlots& moe);
/// Of a sum over ep: one rank takes another rank's experts for its own, and serves their tokens beside those of its own
/// that are still sent to it.
std::optional<Cause> believed_owner_cause(const WrongTap& wrong, const MoeSlots& moe);
/// One expert has another's place, or two have each other's.
std::optional<Cause> exchanged_experts_cause(const WrongTap& wrong, const MoeSlots& moe);
/// All rows of a rank are misplaced alike, on the way to the experts or back.
std::optional<Cause> misplacement_cause(const WrongTap& wrong, const MoeSlots& moe);
/// A slot's output is that of any other token, or of another slot.
std::optional<Cause> other_tokens_cause(const WrongTap& wrong, const MoeSlots& moe);

}  // namespace shardproof::diagnosis
