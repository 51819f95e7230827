// Causes at the combined output of the experts.
//
// A row is stored(sum over slots of weight * output of the slot's expert). A fault changes the weights of all slots, or
// the output of some of them: which, differs from row to row, so every subset of a row's slots is tried.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <vector>

#include "emu/diagnose/internal/moe_slots.h"
#include "emu/plan/deployment.h"
#include "ops/router.h"

namespace shardproof::diagnosis {
namespace {

Row scaled(const Row& row, double factor) {
  Row result = row;
  for (double& value : result) value *= factor;
  return result;
}

std::optional<Cause> permuted_weights_cause(const WrongTap& wrong, const MoeSlots& moe) {
  for (std::size_t shift = 1; shift < moe.slots(0).weights.size(); ++shift) {
    const auto rotated = [&](std::size_t i) {
      Row weights = moe.slots(i).weights;
      std::rotate(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(shift), weights.end());
      return weights;
    };
    const auto reversed = [&](std::size_t i) {
      Row weights = moe.slots(i).weights;
      std::ranges::reverse(weights);
      return weights;
    };
    if (moe.explained_by_weights(rotated) || moe.explained_by_weights(reversed)) {
      return Cause{"router_weights_permuted", fmt::format("the router's weights stand with other experts than they "
                                                          "were computed for on {}",
                                                          ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

std::optional<Cause> dropped_slot_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const auto k = moe.slots(0).weights.size();
  for (std::size_t dropped = 0; dropped < k && k > 1; ++dropped) {
    const auto without = [&](std::size_t i) {
      Row weights = moe.slots(i).weights;
      weights[dropped] = 0;
      return weights;
    };
    if (moe.explained_by_weights(without)) {
      return Cause{"slot_dropped",
                   fmt::format("choice {} of {} is not in the sum on {}", dropped, k, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

std::optional<Cause> squared_weights_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const auto squared = [&](std::size_t i) {
    Row weights = moe.slots(i).weights;
    for (double& weight : weights) weight *= weight;
    return weights;
  };
  if (!moe.explained_by_weights(squared)) return std::nullopt;
  return Cause{"router_weights_squared",
               fmt::format("the router's weights are applied twice on {}", ranks_of(wrong.rows))};
}

/// Without (or with) the division by the sum of the chosen experts' shares.
std::optional<Cause> scaled_weights_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const ExpectedTap& logits = wrong.model.tap(wrong.layer, TapKind::router_logits);
  const ExpectedTap& ids = wrong.model.tap(wrong.layer, TapKind::router_choice);
  const bool normalised = wrong.model.plan().model.layers[wrong.layer].feed_forward.norm_topk_prob;
  double shown = 0;
  const auto other = [&](std::size_t i) {
    const WrongRow& row = moe.row(i);
    std::vector<std::int32_t> chosen;
    for (std::int64_t s = 0; s < ids.cols; ++s) chosen.push_back(static_cast<std::int32_t>(ids.at(row.row, s)));
    Row weights(chosen.size());
    ops::route_weights<double>({wrong.model.row(logits, row.row).data(), 1, logits.cols},
                               {chosen.data(), 1, std::ssize(chosen)}, !normalised, wrong.model.format(),
                               {weights.data(), 1, std::ssize(weights)});
    shown = 0;
    for (const double weight : weights) shown += weight;
    return weights;
  };
  if (!moe.explained_by_weights(other)) return std::nullopt;
  return Cause{"router_weights_scaled", fmt::format("the router's weights are {}renormalised on {}: they sum to {:.4g}",
                                                    normalised ? "not " : "", ranks_of(wrong.rows), shown)};
}

std::optional<Cause> weights_cause(const WrongTap& wrong, const MoeSlots& moe) {
  if (auto cause = permuted_weights_cause(wrong, moe)) return cause;
  if (auto cause = dropped_slot_cause(wrong, moe)) return cause;
  if (auto cause = squared_weights_cause(wrong, moe)) return cause;
  return scaled_weights_cause(wrong, moe);
}

/// The sum over etp, for the slots that some rank computed.
std::optional<Cause> reduction_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const int etp = model.plan().parallel.etp;
  const auto partials = [&](std::size_t i, std::size_t s, int shift) {
    std::vector<Row> result;
    for (int t = 0; t < etp; ++t) {
      const ExpertFrom from{wrong.layer, moe.slots(i).experts[s]};
      const auto partial = model.expert_partial_sum(wrong.layer, wrong.rows[i].row, from,
                                                    {.gate_up = t, .down = (t + shift) % etp, .on = t});
      result.emplace_back(partial.begin(), partial.end());
    }
    return result;
  };
  for (const PartialSumFault& fault : partial_sum_faults(etp)) {
    const auto output = [&](std::size_t i, std::size_t s) {
      Row sum = faulty_sum(fault, partials(i, s, 0), summed_at(wrong, wrong.rows[i]).etp);
      model.finish(sum);
      return sum;
    };
    if (moe.explained_by_outputs(output)) return cause_of(fault, "etp", etp);
  }
  const auto of_slices = [&](const auto& slice_on) {
    return [&, slice_on](std::size_t i, std::size_t s) {
      Row sum(wrong.rows[i].got.size(), 0.0);
      for (int t = 0; t < etp; ++t) {
        const int slice = slice_on(t);
        const auto part =
            model.expert_partial_sum(wrong.layer, wrong.rows[i].row, {wrong.layer, moe.slots(i).experts[s]},
                                     {.gate_up = slice, .down = slice, .on = t});
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += part[c];
      }
      model.finish(sum);
      return sum;
    };
  };
  // One slice's partial sums everywhere, or on one rank, or down projections of another slice.
  for (int member = 0; member < etp && etp > 1; ++member) {
    if (moe.explained_by_outputs(of_slices([&](int) { return member; }))) {
      return Cause{"wrong_slice", fmt::format("every etp rank computes slice {} of {} of the experts", member, etp)};
    }
    for (int other = 0; other < etp; ++other) {
      if (other == member || !moe.explained_by_outputs(of_slices([&](int t) { return t == member ? other : t; }))) {
        continue;
      }
      return Cause{"wrong_slice", fmt::format("etp {} computes slice {} of {} of the experts", member, other, etp)};
    }
  }
  for (int shift = 1; shift < etp; ++shift) {
    for (int member = -1; member < etp; ++member) {
      const auto output = [&](std::size_t i, std::size_t s) {
        const std::vector<Row> right = partials(i, s, 0);
        const std::vector<Row> shifted = partials(i, s, shift);
        Row sum(right.front().size(), 0.0);
        for (int t = 0; t < etp; ++t) {
          const Row& part = (member < 0 || member == t ? shifted : right)[static_cast<std::size_t>(t)];
          for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += part[c];
        }
        model.finish(sum);
        return sum;
      };
      if (!moe.explained_by_outputs(output)) continue;
      return Cause{"wrong_slice", fmt::format("etp {} multiplies with the down projection's slice of etp {}",
                                              std::max(member, 0), (std::max(member, 0) + shift) % etp)};
    }
  }
  return std::nullopt;
}

/// What the ranks of etp have of the experts.
std::optional<Cause> loaded_experts_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const auto fits = [&](const SupposedLoads& supposed) {
    return moe.explained_by_outputs([&](std::size_t i, std::size_t s) {
      Row sum(wrong.rows[i].got.size(), 0.0);
      for (int t = 0; t < model.plan().parallel.etp; ++t) {
        const Row part =
            model.expert_partial_sum(wrong.layer, wrong.rows[i].row, moe.slots(i).experts[s], t, supposed.on(t));
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += part[c];
      }
      model.finish(sum);
      return sum;
    });
  };
  const ModelConfig& config = model.plan().model;
  const std::int64_t experts = config.layers[wrong.layer].feed_forward.num_experts;
  for (int member = 0; member < model.plan().parallel.etp && model.plan().parallel.etp > 1; ++member) {
    for (std::int64_t shift = 1; shift < experts; ++shift) {
      const SliceEdit others = [&, shift](WeightSpec& spec, Range&, Range&) {
        spec = weight_spec(config, spec.weight, spec.layer, static_cast<int>((spec.expert + shift) % experts));
      };
      if (!fits({member, others})) continue;
      return Cause{"expert_map", fmt::format("etp {} has the weights of expert (e + {}) mod {} for those of expert e",
                                             member, shift, experts)};
    }
  }
  MlpWeights weights{.gate = Weight::expert_gate, .up = Weight::expert_up, .down = Weight::expert_down};
  if (config.layers[wrong.layer].feed_forward.expert_bias) {
    weights.biases = {Weight::expert_gate_bias, Weight::expert_up_bias, Weight::expert_down_bias};
  }
  return loaded_mlp_cause(wrong, weights, Axis::etp, fits);
}

/// Rows that one ep rank serves are no numbers, and no others: a buffer holds NaN until the call that fills it is
/// awaited (collectives/call_handle.h).
std::optional<Cause> early_read_cause(const WrongTap& wrong) {
  const Plan& plan = wrong.model.plan();
  if (plan.parallel.overlap == Overlap::none) return std::nullopt;
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  const ExpectedTap& ids = wrong.model.tap(wrong.layer, TapKind::router_choice);
  const auto served_by = [&](const WrongRow& row, int rank) {
    for (std::int64_t s = 0; s < ids.cols; ++s) {
      const auto expert = static_cast<std::int64_t>(ids.at(row.row, s));
      if (serving_ep(plan.model, deployment, wrong.layer, row.row, expert) == rank) return true;
    }
    return false;
  };
  const auto no_number = [](const WrongRow& row) {
    return std::ranges::all_of(row.got, [](double value) { return std::isnan(value); });
  };
  for (int rank = 0; rank < plan.parallel.ep; ++rank) {
    const bool fits =
        std::ranges::all_of(wrong.rows, [&](const WrongRow& row) { return no_number(row) && served_by(row, rank); });
    if (!fits) continue;
    return Cause{"read_before_arrival",
                 fmt::format("what experts at ep {} make of every wrong row is no number, on {}: as of rows that are "
                             "read before the call that brings them is awaited",
                             rank, ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

/// Every rank that holds a replica of a chosen expert adds its output.
std::optional<Cause> replicas_summed_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const Plan& plan = wrong.model.plan();
  const auto maps = expert_maps_of(plan.model, plan.parallel, plan.workload.routing);
  if (!plan.parallel.sums_over_ep() || maps == nullptr) return std::nullopt;
  const ExpertMap& map = (*maps)[static_cast<std::size_t>(wrong.layer)];
  const auto ranks_with = [&](std::int64_t expert) {
    std::set<std::int64_t> ranks;
    for (const std::int32_t replica : map.replicas(expert)) {
      ranks.insert(shard_of(std::ssize(map.logical()), plan.parallel.ep, replica));
    }
    return static_cast<double>(ranks.size());
  };
  double most = 1;
  for (std::size_t i = 0; i < wrong.rows.size(); ++i) {
    for (const std::int64_t expert : moe.slots(i).experts) most = std::max(most, ranks_with(expert));
  }
  const auto output = [&](std::size_t i, std::size_t s) {
    return scaled(moe.slots(i).outputs[s], ranks_with(moe.slots(i).experts[s]));
  };
  if (most < 2 || !moe.explained_by_outputs(output)) return std::nullopt;
  return Cause{
      "replicas_summed",
      fmt::format("every ep rank that holds a replica of a chosen expert adds its output, up to {} of them, on "
                  "{}",
                  most, ranks_of(wrong.rows))};
}

/// What the slots' experts are, or how often they count.
std::optional<Cause> expert_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const ModelConfig& config = model.plan().model;
  const auto missing = [&](std::size_t i, std::size_t) { return Row(wrong.rows[i].got.size(), 0.0); };
  if (moe.explained_by_outputs(missing)) {
    return Cause{"expert_missing", fmt::format("outputs of chosen experts are zero, on {}", ranks_of(wrong.rows))};
  }
  if (auto cause = expert_map_cause(wrong, moe)) return cause;
  for (const auto& [name, degree] : degrees(model.plan().parallel)) {
    for (const double factor : {static_cast<double>(degree), 1.0 / degree}) {
      const auto output = [&](std::size_t i, std::size_t s) { return scaled(moe.slots(i).outputs[s], factor); };
      if (!moe.explained_by_outputs(output)) continue;
      return Cause{factor > 1 ? "counted_n_times" : "averaged",
                   fmt::format("experts' outputs are {} times what they should be, {} = {}", factor, name, degree)};
    }
  }
  for (int layer = 0; layer < config.layers.size(); ++layer) {
    if (!is_like(wrong, layer)) continue;
    const auto output = [&](std::size_t i, std::size_t s) {
      return model.expert_output(wrong.layer, wrong.rows[i].row, {layer, moe.slots(i).experts[s]});
    };
    if (!moe.explained_by_outputs(output)) continue;
    return Cause{"weights_of_another_layer", fmt::format("experts have the weights of layer {}", layer)};
  }
  const ExpectedTap& x = model.tap(wrong.layer, TapKind::moe_norm);
  for (const auto& [name, degree] : degrees(model.plan().parallel)) {
    // Named again: clang 14 captures no structured binding.
    const auto output = [&, degree = degree](std::size_t i, std::size_t s) {
      // Rounded once, with the term in it: a tie goes elsewhere.
      Row sum(wrong.rows[i].got.size(), 0.0);
      for (int t = 0; t < model.plan().parallel.etp; ++t) {
        const auto part = model.expert_partial_sum(wrong.layer, wrong.rows[i].row,
                                                   {wrong.layer, moe.slots(i).experts[s]}, {.gate_up = t, .down = t});
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += part[c];
      }
      const std::span<const double> term = model.row(x, wrong.rows[i].row);
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += degree * term[c];
      model.finish(sum);
      return sum;
    };
    if (!moe.explained_by_outputs(output)) continue;
    return Cause{"term_on_every_rank",
                 fmt::format("experts' outputs hold {} times their input too much, {} = {}", degree, name, degree)};
  }
  return std::nullopt;
}

/// No numbers, in microbatches in which a replica of the row's experts runs padding.
std::optional<Cause> padding_cause(const WrongTap& wrong) {
  if (wrong.model.plan().workload.idle != Idle::pad) return std::nullopt;
  const TokenMap& tokens = wrong.model.tokens();
  const auto padded_beside = [&](const WrongRow& row) {
    const std::int64_t microbatch = tokens.home(row.row).microbatch;
    return std::ranges::any_of(wrong.model.mesh().group(Axis::ep, row.rank), [&](int member) {
      return tokens.chunks(wrong.model.mesh().coordinates(member).dp, microbatch).empty();
    });
  };
  for (const WrongRow& row : wrong.rows) {
    const bool none = std::ranges::all_of(row.got, [](double value) { return std::isnan(value); });
    if (!none || !padded_beside(row)) return std::nullopt;
  }
  return Cause{"padding_leaks",
               fmt::format("{} hold no numbers for {} tokens, whose experts also serve the padded rows "
                           "of a replica without work: token {}, the first of them",
                           ranks_of(wrong.rows), wrong.rows.size(), wrong.rows.front().row)};
}

}  // namespace

std::optional<Cause> moe_output_cause(const WrongTap& wrong) {
  if (auto cause = padding_cause(wrong)) return cause;
  if (auto cause = early_read_cause(wrong)) return cause;
  if (auto cause = gather_cause(wrong)) return cause;
  if (const auto sources = row_sources(wrong.rows, wrong.expected, wrong.tolerance)) {
    return row_order_cause(wrong, *sources);
  }
  if (auto cause = sum_over_ep_cause(wrong)) return cause;
  const std::vector<WrongRow> routed = routed_beside(wrong);
  if (auto cause = weights_cause(wrong, MoeSlots(wrong, routed))) return cause;
  const MoeSlots moe(wrong, wrong.rows);
  if (auto cause = reduction_cause(wrong, moe)) return cause;
  if (auto cause = replicas_summed_cause(wrong, moe)) return cause;
  if (auto cause = expert_cause(wrong, moe)) return cause;
  if (auto cause = loaded_experts_cause(wrong, moe)) return cause;
  if (auto cause = reduced_over_ep_cause(wrong, moe)) return cause;
  if (auto cause = misplacement_cause(wrong, moe)) return cause;
  if (auto cause = exchanged_experts_cause(wrong, moe)) return cause;
  return other_tokens_cause(wrong, moe);
}

}  // namespace shardproof::diagnosis
