// Causes at what some models have and others do not: windows, pairs that turn, routers of groups and biases.
#include <fmt/format.h>

#include "emu/diagnose/internal/wrong_tap.h"

namespace shardproof::diagnosis {

std::optional<Cause> pairing_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const auto predicted = [&](const WrongRow& row) {
    const Recompute::Origin from{
        .row = row.row, .layer = wrong.layer, .position = model.tokens().position(row.row), .other_pairs = true};
    return model.heads(wrong.kind, wrong.layer, from, {row.col, std::ssize(row.got)});
  };
  if (!explains(wrong.rows, predicted, wrong.tolerance)) return std::nullopt;
  const bool interleaved = model.plan().model.layers[wrong.layer].attention.rope.interleaved;
  constexpr const char* kNames[] = {"i and i + d/2", "2i and 2i + 1"};
  return Cause{"rotary_pairing", fmt::format("elements {} of a head turn together on {}, not {}", kNames[!interleaved],
                                             ranks_of(wrong.rows), kNames[interleaved])};
}

std::optional<Cause> window_cause(const WrongTap& wrong) {
  const std::int64_t window = wrong.model.plan().model.layers[wrong.layer].attention.sliding_window;
  if (window == 0) return std::nullopt;
  for (const std::int64_t seen : {window + 1, window - 1}) {
    const auto predicted = [&](const WrongRow& row) { return attended(wrong, row, seen - window); };
    if (seen < 1 || !explains(wrong.rows, predicted, wrong.tolerance)) continue;
    return Cause{"sliding_window", fmt::format("tokens on {} see {} keys, themselves included, where the window is {}",
                                               ranks_of(wrong.rows), seen, window)};
  }
  return std::nullopt;
}

std::optional<Cause> router_cause(const WrongTap& wrong) {
  const FeedForwardSpec& spec = wrong.model.plan().model.layers[wrong.layer].feed_forward;
  const auto with = [&](const auto& edit) {
    return explains(
        wrong.rows, [&](const WrongRow& row) { return routed(wrong, row, edit); }, wrong.tolerance);
  };
  if (spec.groups > 1 && with([](ops::RouteOptions<double>& options) { options.closed_score = 0; })) {
    return Cause{"masked_groups_zero",
                 fmt::format("{} choose as if experts of the groups that are closed had a score of 0, more than "
                             "those of the open ones that are negative",
                             ranks_of(wrong.rows))};
  }
  if (spec.selection_bias && with([](ops::RouteOptions<double>& options) { options.weighs_bias = true; })) {
    return Cause{"selection_bias_in_weights",
                 fmt::format("{} weigh experts by their scores with the bias that is for the choice alone",
                             ranks_of(wrong.rows))};
  }
  const LayerList& layers = wrong.model.plan().model.layers;
  for (int layer = 0; spec.selection_bias && layer < layers.size(); ++layer) {
    if (!is_like(wrong, layer)) continue;
    const LoadedWeight<double> bias =
        wrong.model.whole(weight_spec(wrong.model.plan().model, Weight::router_selection_bias, layer));
    if (with([&](ops::RouteOptions<double>& options) { options.selection_bias = bias.view().row(0); })) {
      return Cause{"weights_of_another_layer",
                   fmt::format("{} choose with the selection bias of layer {}", ranks_of(wrong.rows), layer)};
    }
  }
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
