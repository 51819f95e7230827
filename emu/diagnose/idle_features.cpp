#include "emu/diagnose/idle_features.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string_view>

#include "emu/diagnose/internal/wrong_tap.h"

namespace shardproof {
namespace {

struct Feature {
  std::string_view key;
  TapKind tap;  ///< that shows it
  bool (*has)(const ModelConfig& model, const LayerSpec& layer);
  void (*remove)(ModelConfig& model, LayerSpec& layer);
};

using Model = ModelConfig;
using Layer = LayerSpec;

void keep_plain(RopeSpec& rope) {
  rope = {.theta = rope.theta, .dim = rope.dim, .interleaved = rope.interleaved, .mscale_all_dim = rope.mscale_all_dim};
}

/// The scores are multiplied by something else after the edit.
bool scales_otherwise(AttentionSpec spec, void (*edit)(AttentionSpec&)) {
  const double scale = spec.score_scale();
  edit(spec);
  return spec.score_scale() != scale;
}

/// In the order of the program.
constexpr Feature kFeatures[] = {
    {"embedding_multiplier", TapKind::embedding_scaled,
     [](const Model& model, const Layer&) { return model.embedding_multiplier != 1; },
     [](Model& model, Layer&) { model.embedding_multiplier = 1; }},
    {"rope_scaling", TapKind::attention_q,
     [](const Model&, const Layer& layer) { return layer.attention.rope.type != RopeType::plain; },
     [](Model&, Layer& layer) { keep_plain(layer.attention.rope); }},
    {"attention_bias", TapKind::attention_v,
     [](const Model&, const Layer& layer) { return layer.attention.qkv_bias && !layer.attention.latent(); },
     [](Model&, Layer& layer) { layer.attention.qkv_bias = false; }},
    {"attention_bias", TapKind::attention_kv_latent,
     [](const Model&, const Layer& layer) { return layer.attention.qkv_bias && layer.attention.latent(); },
     [](Model&, Layer& layer) { layer.attention.qkv_bias = false; }},
    {"clip_qkv", TapKind::attention_v, [](const Model&, const Layer& layer) { return layer.attention.clip_qkv > 0; },
     [](Model&, Layer& layer) { layer.attention.clip_qkv = 0; }},
    {"mscale_all_dim", TapKind::attention_context,
     [](const Model&, const Layer& layer) {
       return scales_otherwise(layer.attention, [](AttentionSpec& spec) { spec.rope.mscale_all_dim = 0; });
     },
     [](Model&, Layer& layer) { layer.attention.rope.mscale_all_dim = 0; }},
    {"attention_multiplier", TapKind::attention_context,
     [](const Model&, const Layer& layer) {
       return scales_otherwise(layer.attention, [](AttentionSpec& spec) { spec.attention_multiplier = 0; });
     },
     [](Model&, Layer& layer) { layer.attention.attention_multiplier = 0; }},
    {"sliding_window", TapKind::attention_context,
     [](const Model& model, const Layer& layer) {
       // A window as wide as the longest sequence that the model takes is none.
       const std::int64_t window = layer.attention.sliding_window, longest = model.max_position_embeddings;
       return window > 0 && (longest == 0 || window < longest);
     },
     [](Model&, Layer& layer) { layer.attention.sliding_window = 0; }},
    {"sinks", TapKind::attention_context, [](const Model&, const Layer& layer) { return layer.attention.sinks; },
     [](Model&, Layer& layer) { layer.attention.sinks = false; }},
    {"attention output bias", TapKind::attention_output,
     [](const Model&, const Layer& layer) { return layer.attention.output_bias; },
     [](Model&, Layer& layer) { layer.attention.output_bias = false; }},
    {"residual_multiplier", TapKind::attention_residual,
     [](const Model& model, const Layer&) { return model.residual_multiplier != 1; },
     [](Model& model, Layer&) { model.residual_multiplier = 1; }},
    {"router bias", TapKind::router_logits,
     [](const Model&, const Layer& layer) { return layer.feed_forward.router_bias; },
     [](Model&, Layer& layer) { layer.feed_forward.router_bias = false; }},
    {"selection_bias", TapKind::router_choice,
     [](const Model&, const Layer& layer) {
       return layer.feed_forward.selection_bias && layer.feed_forward.top_k < layer.feed_forward.num_experts;
     },
     [](Model&, Layer& layer) { layer.feed_forward.selection_bias = false; }},
    {"n_group, topk_group", TapKind::router_choice,
     [](const Model&, const Layer& layer) { return layer.feed_forward.groups > layer.feed_forward.top_groups; },
     [](Model&, Layer& layer) { layer.feed_forward.groups = layer.feed_forward.top_groups = 1; }},
    {"routed_scaling_factor", TapKind::router_weights,
     [](const Model&, const Layer& layer) { return layer.feed_forward.routed_scaling_factor != 1; },
     [](Model&, Layer& layer) { layer.feed_forward.routed_scaling_factor = 1; }},
    {"router_jitter_noise", TapKind::router_weights,
     [](const Model&, const Layer& layer) {
       return layer.feed_forward.scoring == Scoring::sparsemixer && layer.feed_forward.num_experts > 2;
     },
     [](Model&, Layer& layer) { layer.feed_forward.router_jitter = std::numeric_limits<double>::infinity(); }},
    {"swiglu_limit", TapKind::moe_output,
     [](const Model&, const Layer& layer) { return layer.feed_forward.swiglu_limit > 0; },
     [](Model&, Layer& layer) { layer.feed_forward.swiglu_limit = std::numeric_limits<double>::infinity(); }},
    {"logits_scaling", TapKind::logits, [](const Model& model, const Layer&) { return model.logits_scaling != 1; },
     [](Model& model, Layer&) { model.logits_scaling = 1; }},
};

/// The rows of the longest sequence from its last token on, then all others.
std::vector<std::int64_t> rows_to_try(std::span<const std::int64_t> lengths) {
  const auto longest = std::ranges::max_element(lengths);
  const std::int64_t begin = std::accumulate(lengths.begin(), longest, std::int64_t{0});
  std::vector<std::int64_t> rows;
  for (std::int64_t i = *longest; i-- > 0;) rows.push_back(begin + i);
  const std::int64_t all = std::accumulate(longest, lengths.end(), begin);
  for (std::int64_t row = 0; row < all; ++row) {
    if (row < begin || row >= begin + *longest) rows.push_back(row);
  }
  return rows;
}

/// One feature, of the layers of one kind.
class Trial {
 public:
  Trial(const Plan& plan, const PreparedReference& reference, const Feature& feature, int kind)
      : plan_(without(plan, feature, kind)), feature_(feature), with_(plan, reference), without_(plan_, reference) {}

  /// In these layers; -1 for a tap that is no layer's.
  bool shows_in(std::span<const int> layers, std::span<const std::int64_t> rows) {
    return std::ranges::any_of(layers, [&](int layer) {
      return std::ranges::any_of(rows, [&](std::int64_t row) { return changes(layer, row); });
    });
  }

 private:
  static Plan without(Plan plan, const Feature& feature, int kind) {
    LayerSpec layer = plan.model.layers.kind(kind);
    feature.remove(plan.model, layer);
    plan.model.layers.kind(kind) = layer;
    return plan;
  }

  bool changes(int layer, std::int64_t row) {
    return predicted_by(with_, layer, row) != predicted_by(without_, layer, row);
  }

  std::vector<double> predicted_by(Recompute& model, int layer, std::int64_t row) const {
    const ExpectedTap& expected = model.tap(layer, feature_.tap);
    const WrongRow whole{
        .rank = 0, .row = row, .col = 0, .got = std::vector<double>(to_size(expected.cols)), .want = {}};
    const std::vector<WrongRow> none;
    const std::vector<TapPart> no_parts;
    return diagnosis::predicted({.model = model,
                                 .expected = expected,
                                 .layer = layer,
                                 .kind = feature_.tap,
                                 .rows = none,
                                 .witnesses = none,
                                 .norm_parts = no_parts},
                                whole);
  }
  static std::size_t to_size(std::int64_t count) { return static_cast<std::size_t>(count); }

  Plan plan_;
  const Feature& feature_;
  Recompute with_, without_;
};

std::vector<int> layers_of_kind(const LayerList& layers, int kind) {
  std::vector<int> result;
  for (int layer = 0; layer < layers.size(); ++layer) {
    if (layers.kind_of(layer) == kind) result.push_back(layer);
  }
  return result;
}

}  // namespace

std::vector<Problem> idle_features(const Plan& plan, const PreparedReference& reference) {
  const LayerList& layers = plan.model.layers;
  const std::vector<std::int64_t> rows = rows_to_try(reference.batch.lengths());
  const bool turns = std::ranges::max(reference.batch.lengths()) > 1;
  std::vector<Problem> problems;
  for (const Feature& feature : kFeatures) {
    const bool of_layers = feature.tap != TapKind::embedding_scaled && feature.tap != TapKind::logits;
    for (int kind = 0; kind < static_cast<int>(layers.kinds().size()); ++kind) {
      const LayerSpec& spec = layers.kinds()[static_cast<std::size_t>(kind)];
      if (!feature.has(plan.model, spec) || (kind > 0 && !of_layers)) continue;
      const bool turned = feature.tap == TapKind::attention_q;
      if (turned && !turns) continue;
      const std::vector<int> held = of_layers ? layers_of_kind(layers, kind) : std::vector<int>{-1};
      if (held.empty() || Trial(plan, reference, feature, kind).shows_in(held, rows)) continue;
      const std::string where =
          of_layers ? fmt::format(" of layer {}{}", held.front(), held.size() > 1 ? " and those like it" : "") : "";
      problems.push_back({"model." + std::string(feature.key),
                          fmt::format("without it every bit{} would be the same: no token of this batch shows it, so "
                                      "that nothing is proven of it; choose longer sequences, more of them, or another "
                                      "seed",
                                      where)});
    }
  }
  return problems;
}

}  // namespace shardproof
