// Causes at an MLP whose weights are loaded wrongly: by one rank of its group, or by every one.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emu/diagnose/internal/wrong_tap.h"

namespace shardproof::diagnosis {
namespace {

using Fits = std::function<bool(const SupposedLoads&)>;

/// What of the MLP is loaded wrongly at once: each weight, each bias, and what a fused tensor holds.
std::vector<std::vector<Weight>> sets_of(const MlpWeights& weights) {
  std::vector<std::vector<Weight>> sets{{weights.gate}, {weights.up}, {weights.down}, {weights.gate, weights.up}};
  for (const Weight bias : weights.biases) sets.push_back({bias});
  if (!weights.biases.empty()) sets.push_back({weights.biases[0], weights.biases[1]});
  sets.push_back({weights.gate, weights.up, weights.down});
  return sets;
}

bool contains(const std::vector<Weight>& set, Weight weight) {
  return std::ranges::find(set, weight) != set.end();
}

/// "gate and up", "gate_bias".
std::string names_of(const MlpWeights& weights, const std::vector<Weight>& set) {
  constexpr std::array kNames{"gate", "up", "down"};
  const std::array parts{weights.gate, weights.up, weights.down};
  std::vector<std::string> names;
  for (const Weight weight : set) {
    const auto part = std::ranges::find(parts, weight);
    const auto bias = std::ranges::find(weights.biases, weight);
    names.push_back(part != parts.end() ? std::string(kNames[static_cast<std::size_t>(part - parts.begin())])
                                        : fmt::format("the bias of {}",
                                                      kNames[static_cast<std::size_t>(bias - weights.biases.begin())]));
  }
  return fmt::format("{}", fmt::join(names, " and "));
}

/// "tp 1 has", "every rank of tp has".
std::string who_has(Axis axis, int member) {
  return member < 0 ? fmt::format("every rank of {} has", to_string(axis))
                    : fmt::format("{} {} has", to_string(axis), member);
}

std::optional<Cause> other_layer_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis, const Fits& fits) {
  const ModelConfig& model = wrong.model.plan().model;
  for (const std::vector<Weight>& set : sets_of(weights)) {
    for (int layer = 0; layer < model.layers.size(); ++layer) {
      if (!is_like(wrong, layer)) continue;
      const SliceEdit edit = [&, layer](WeightSpec& spec, Range&, Range&) {
        if (contains(set, spec.weight)) spec = weight_spec(model, spec.weight, layer, spec.expert);
      };
      for (int member = -1; member < wrong.model.mesh().degree(axis); ++member) {
        if (!fits({member, edit})) continue;
        return Cause{"weights_of_another_layer",
                     fmt::format("{} {} of layer {}", who_has(axis, member), names_of(weights, set), layer)};
      }
    }
  }
  return std::nullopt;
}

std::optional<Cause> exchanged_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis, const Fits& fits) {
  const ModelConfig& model = wrong.model.plan().model;
  for (const bool biases : {false, true}) {
    if (biases && weights.biases.empty()) continue;
    const SliceEdit edit = [&, biases](WeightSpec& spec, Range&, Range&) {
      std::vector<std::pair<Weight, Weight>> pairs{{weights.gate, weights.up}};
      if (biases) pairs.emplace_back(weights.biases[0], weights.biases[1]);
      for (const auto& [one, other] : pairs) {
        if (spec.weight != one && spec.weight != other) continue;
        spec = weight_spec(model, spec.weight == one ? other : one, spec.layer, spec.expert);
        return;
      }
    };
    for (int member = -1; member < wrong.model.mesh().degree(axis); ++member) {
      if (!fits({member, edit})) continue;
      return Cause{"weights_exchanged", fmt::format("{} gate in the place of up and up in that of gate{}",
                                                    who_has(axis, member), biases ? ", with their biases" : "")};
    }
  }
  return std::nullopt;
}

/// What is split over the group, in another rank's slice.
std::optional<Cause> slice_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis, const Fits& fits) {
  const int members = wrong.model.mesh().degree(axis);
  for (const std::vector<Weight>& set : sets_of(weights)) {
    for (int member = 0; member < members; ++member) {
      for (int other = 0; other < members; ++other) {
        if (other == member) continue;
        const SliceEdit edit = [&, other](WeightSpec& spec, Range& rows, Range& cols) {
          if (!contains(set, spec.weight)) return;
          for (const auto& [split, extent, part] :
               {std::tuple{spec.row_split, spec.rows, &rows}, std::tuple{spec.col_split, spec.cols, &cols}}) {
            const Range slice = partition(extent, members, other);
            if (split != Split::none && slice.count == part->count) *part = slice;
          }
        };
        if (!fits({member, edit})) continue;
        return Cause{"wrong_slice", fmt::format("{} {} {}'s slice of {}", who_has(axis, member), to_string(axis), other,
                                                names_of(weights, set))};
      }
    }
  }
  return std::nullopt;
}

/// Of weights that are quantised in blocks.
std::optional<Cause> cut_block_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis, const Fits& fits) {
  const std::int64_t late = wrong.model.plan().model.weight_block / 2;
  const SliceEdit edit = [&](WeightSpec& spec, Range&, Range& cols) {
    if (spec.weight == weights.down) cols.begin += cols.end() + late <= spec.cols ? late : -late;
  };
  for (int member = 0; late > 0 && member < wrong.model.mesh().degree(axis); ++member) {
    if (!fits({member, edit})) continue;
    return Cause{"wrong_slice", fmt::format("{} a slice of the down projection that is cut across its blocks: it "
                                            "begins {} columns into one",
                                            who_has(axis, member), late)};
  }
  return std::nullopt;
}

/// Trying what a row would be under every supposition must cost no more than this.
constexpr double kTriedFlops = 1e10;

bool affordable(const WrongTap& wrong, const MlpWeights& weights, Axis axis) {
  const ModelConfig& model = wrong.model.plan().model;
  const FeedForwardSpec& spec = model.layers[wrong.layer].feed_forward;
  const bool experts = axis == Axis::etp;
  const double rows = experts ? static_cast<double>(spec.top_k) : 1;
  const double width = static_cast<double>(experts ? spec.intermediate_size : spec.mlp_size());
  const double members = wrong.model.mesh().degree(axis);
  const double tried = static_cast<double>(sets_of(weights).size()) * (members + 1) *
                       (members + static_cast<double>(model.layers.size()));
  return tried * rows * 6 * static_cast<double>(model.hidden_size) * width <= kTriedFlops;
}

}  // namespace

std::optional<Cause> loaded_mlp_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis,
                                      const std::function<bool(const SupposedLoads&)>& fits) {
  if (!affordable(wrong, weights, axis)) return std::nullopt;
  if (auto cause = cut_block_cause(wrong, weights, axis, fits)) return cause;
  if (auto cause = slice_cause(wrong, weights, axis, fits)) return cause;
  if (auto cause = other_layer_cause(wrong, weights, axis, fits)) return cause;
  return exchanged_cause(wrong, weights, axis, fits);
}

}  // namespace shardproof::diagnosis
