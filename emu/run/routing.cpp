#include "emu/run/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace shardproof {
namespace {

/// Tokens over which the shares of a Zipf law are rounded to whole slots.
constexpr std::int64_t kZipfPeriod = 1 << 24;

/// sum over i < n of floor((step * i + shift) / period), for n, step and shift up to 2^31, in O(log) steps: Euclid's
/// algorithm on the lattice points under a line (Graham, Knuth, Patashnik: Concrete Mathematics, 3.5).
std::int64_t floor_sum(std::int64_t n, std::int64_t period, std::int64_t step, std::int64_t shift) {
  std::int64_t sum = 0;
  while (n > 0) {
    sum += n * (n - 1) / 2 * (step / period) + n * (shift / period);
    step %= period;
    shift %= period;
    const std::int64_t highest = step * n + shift;
    if (highest < period) break;
    n = highest / period;
    shift = highest % period;
    std::swap(step, period);
  }
  return sum;
}

/// Slots that a cycle counts once and for all.
constexpr std::int64_t kMostRemembered = 1 << 14;

/// Every expert serves as many slots of a period as any other.
std::vector<std::int64_t> even_counts(const FeedForwardSpec& spec) {
  const std::int64_t each = spec.top_k / std::gcd(spec.num_experts, spec.top_k);
  return std::vector<std::int64_t>(static_cast<std::size_t>(spec.num_experts), each);
}

/// Shares in proportion to (e + 1)^-s; what an expert is asked for more than once a token goes to those after it.
std::vector<std::int64_t> zipf_counts(const FeedForwardSpec& spec, double s) {
  std::vector<double> weights;
  for (std::int64_t e = 0; e < spec.num_experts; ++e) weights.push_back(std::pow(static_cast<double>(e + 1), -s));
  // Of this expert and those after it: summed from the smallest, which would else be lost.
  std::vector<double> rest(weights.size());
  std::partial_sum(weights.rbegin(), weights.rend(), rest.rbegin());
  std::vector<std::int64_t> counts;
  std::int64_t left = spec.top_k * kZipfPeriod;
  for (std::size_t e = 0; e < weights.size(); ++e) {
    const auto share = std::llround(static_cast<double>(left) * weights[e] / rest[e]);
    counts.push_back(std::min<std::int64_t>({share, kZipfPeriod, left}));
    left -= counts.back();
  }
  return counts;
}

}  // namespace

SlotCycle::SlotCycle(std::span<const std::int64_t> counts, std::int64_t top_k) : ends_(counts.size()) {
  std::partial_sum(counts.begin(), counts.end(), ends_.begin());
  period_ = ends_.back() / top_k;
  step_ = std::max<std::int64_t>(1, std::llround(0.6180339887498949 * static_cast<double>(period_)));
  while (std::gcd(step_, period_) != 1) ++step_;
  if (period_ * std::ssize(ends_) > kMostRemembered) return;
  for (std::int64_t rest = 0; rest < period_; ++rest) of_rest_.push_back(slots_of_rest(rest));
}

std::vector<std::int64_t> SlotCycle::slots_of_rest(std::int64_t rest) const {
  // A token of the rest is at or after an angle when its own, step * token mod period, carries over the circle with
  // what the angle leaves of it.
  const std::int64_t none = floor_sum(rest, period_, step_, 0);
  std::vector<std::int64_t> slots;
  for (const std::int64_t end : ends_) {
    const std::int64_t turns = end / period_, angle = end % period_;
    slots.push_back(turns * rest);
    if (angle > 0) slots.back() += rest - (floor_sum(rest, period_, step_, period_ - angle) - none);
  }
  return slots;
}

std::vector<std::int64_t> SlotCycle::slots_before_ends(std::int64_t tokens) const {
  const std::int64_t rest = tokens % period_;
  std::vector<std::int64_t> slots = of_rest_.empty() ? slots_of_rest(rest) : of_rest_[static_cast<std::size_t>(rest)];
  for (std::size_t e = 0; e < slots.size(); ++e) slots[e] += tokens / period_ * ends_[e];
  return slots;
}

void SlotCycle::add_slots(std::int64_t begin, std::int64_t end, std::span<std::int64_t> slots) const {
  const std::vector<std::int64_t> from = slots_before_ends(begin), to = slots_before_ends(end);
  std::int64_t before = 0;
  for (std::size_t e = 0; e < slots.size(); ++e) {
    slots[e] += to[e] - from[e] - before;
    before = to[e] - from[e];
  }
}

StatedRouting StatedRouting::of(const Plan& plan) {
  StatedRouting result;
  const LayerList& layers = plan.model.layers;
  const Routing& routing = plan.workload.routing;
  result.by_kind_ = routing.counts.size() <= 1;
  const auto counts = [&](int layer) {
    const FeedForwardSpec& spec = layers[layer].feed_forward;
    if (routing.counts.empty()) return routing.zipf == 0 ? even_counts(spec) : zipf_counts(spec, routing.zipf);
    return routing.counts[result.by_kind_ ? 0 : static_cast<std::size_t>(layer)];
  };
  std::vector<int> cycle_of_kind(layers.kinds().size(), -1);
  for (int layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].feed_forward.dense()) {
      result.cycle_of_layer_.push_back(-1);
      continue;
    }
    int& of_kind = cycle_of_kind[static_cast<std::size_t>(layers.kind_of(layer))];
    if (!result.by_kind_ || of_kind < 0) {
      of_kind = static_cast<int>(result.cycles_.size());
      result.cycles_.emplace_back(counts(layer), layers[layer].feed_forward.top_k);
    }
    result.cycle_of_layer_.push_back(of_kind);
  }
  return result;
}

StatedRouting StatedRouting::of(const RoutingReplay& choices) {
  StatedRouting result;
  result.replay_ = &choices;
  return result;
}

std::vector<std::int64_t> StatedRouting::slots(int layer, const TokenRows& rows, std::int64_t experts) const {
  std::vector<std::int64_t> slots(static_cast<std::size_t>(experts), 0);
  for (const Range& run : rows.runs) {
    if (replay_ == nullptr) {
      cycle(layer).add_slots(run.begin, run.end(), slots);
      continue;
    }
    for (std::int64_t row = run.begin; row < run.end(); ++row) {
      for (const std::int32_t expert : (*replay_)[static_cast<std::size_t>(layer)].row(row)) {
        ++slots.at(static_cast<std::size_t>(expert));
      }
    }
  }
  return slots;
}

std::vector<std::int64_t> StatedRouting::physical_slots(int layer, const TokenRows& rows, std::int64_t experts,
                                                        const ExpertMap& map, Range own,
                                                        ExpertPlacement::Replica rule) const {
  if (replay_ == nullptr) return map.spread(slots(layer, rows, experts));
  std::vector<std::int64_t> slots(static_cast<std::size_t>(std::ssize(map.logical())), 0);
  for (const Range& run : rows.runs) {
    for (std::int64_t row = run.begin; row < run.end(); ++row) {
      for (const std::int32_t expert : (*replay_)[static_cast<std::size_t>(layer)].row(row)) {
        ++slots.at(static_cast<std::size_t>(map.choose(expert, row, own, rule)));
      }
    }
  }
  return slots;
}

const SlotCycle& StatedRouting::cycle(int layer) const {
  return cycles_[static_cast<std::size_t>(cycle_of_layer_[static_cast<std::size_t>(layer)])];
}

}  // namespace shardproof
