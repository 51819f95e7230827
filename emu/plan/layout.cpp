#include "emu/plan/layout.h"

#include <algorithm>
#include <span>
#include <utility>

#include "emu/plan/stages.h"

namespace shardproof {
namespace {

Range kv_heads_of(const AttentionSpec& attention, const Parallel& parallel, int tp) {
  return {tp * attention.kv_heads / parallel.tp, std::max<std::int64_t>(1, attention.kv_heads / parallel.tp)};
}

Range first_kv_heads_of(const AttentionSpec& attention, const Parallel& parallel, int tp) {
  const Range held = kv_heads_of(attention, parallel, tp);
  if (tp == 0) return held;
  const std::int64_t begin = std::max(held.begin, kv_heads_of(attention, parallel, tp - 1).end());
  return {begin, held.end() - begin};
}

LayerLayout layer_layout(const LayerSpec& layer, const Parallel& parallel, const Coordinates& at) {
  const AttentionSpec& attention = layer.attention;
  const FeedForwardSpec& feed_forward = layer.feed_forward;
  const std::int64_t experts = feed_forward.dense() ? 0 : feed_forward.num_experts + parallel.experts.redundant;
  LayerLayout layout{
      .heads = partition(attention.heads, parallel.tp, at.tp),
      .kv_heads = kv_heads_of(attention, parallel, at.tp),
      .first_kv_heads = first_kv_heads_of(attention, parallel, at.tp),
      .experts = partition(experts, parallel.ep, at.ep),
      .most_experts = (experts + parallel.ep - 1) / parallel.ep,
      .intermediate_size = partition(feed_forward.dense() ? 0 : feed_forward.intermediate_size, parallel.etp, at.etp),
      .mlp_size =
          partition(feed_forward.dense() ? feed_forward.intermediate_size : feed_forward.shared_intermediate_size,
                    parallel.tp, at.tp),
      .expert_owner = std::vector<int>(static_cast<std::size_t>(experts)),
  };
  for (int owner = 0; owner < parallel.ep; ++owner) {
    const Range held = partition(experts, parallel.ep, owner);
    std::fill_n(layout.expert_owner.begin() + held.begin, held.count, owner);
  }
  return layout;
}

}  // namespace

std::int64_t padded_vocabulary(const ModelConfig& model, const Parallel& parallel) {
  const std::int64_t multiple = parallel.make_vocab_size_divisible_by * parallel.tp;
  return multiple == 0 ? model.vocab_size : (model.vocab_size + multiple - 1) / multiple * multiple;
}

Range vocabulary_of(const ModelConfig& model, const Parallel& parallel, int tp) {
  if (parallel.make_vocab_size_divisible_by == 0) return partition(model.vocab_size, parallel.tp, tp);
  const std::int64_t rows = padded_vocabulary(model, parallel) / parallel.tp;
  const std::int64_t begin = std::min(rows * tp, model.vocab_size);
  return {begin, std::min(rows, model.vocab_size - begin)};
}

std::shared_ptr<const std::vector<ExpertMap>> expert_maps_of(const ModelConfig& model, const Parallel& parallel,
                                                             const Routing& routing) {
  if (parallel.experts == ExpertPlacement{} || model.dense()) return nullptr;
  auto maps = std::make_shared<std::vector<ExpertMap>>();
  for (std::int64_t layer = 0; layer < model.layers.size(); ++layer) {
    const FeedForwardSpec& spec = model.layers[layer].feed_forward;
    if (spec.dense()) {
      maps->emplace_back(std::vector<std::int64_t>(), 0);
      continue;
    }
    std::span<const std::int64_t> slots;
    if (!routing.counts.empty())
      slots = routing.counts[routing.counts.size() == 1 ? 0 : static_cast<std::size_t>(layer)];
    maps->push_back(make_expert_map(parallel.experts, spec.num_experts, parallel.ep, slots, layer));
  }
  return maps;
}

Layout make_layout(const ModelConfig& model, const Mesh& mesh, int rank,
                   std::shared_ptr<const std::vector<ExpertMap>> maps) {
  const Parallel& parallel = mesh.parallel();
  const Coordinates at = mesh.coordinates(rank);
  Layout layout{.at = at,
                .parallel = parallel,
                .layers = Stages(model, parallel).layers_of(at.pp),
                .vocabulary = vocabulary_of(model, parallel, at.tp),
                .kinds = {},
                .expert_maps = std::move(maps)};
  if (parallel.make_vocab_size_divisible_by > 0) {
    layout.vocabulary_padding = padded_vocabulary(model, parallel) / parallel.tp - layout.vocabulary.count;
  }
  for (const LayerSpec& kind : model.layers.kinds()) layout.kinds.push_back(layer_layout(kind, parallel, at));
  return layout;
}

Range part_of(const Layout& layout, const ModelConfig& model, Split split, int layer, std::int64_t extent) {
  // The extent is that of all heads.
  const auto in_elements = [&](Range heads, std::int64_t all) {
    return Range{heads.begin * (extent / all), heads.count * (extent / all)};
  };
  switch (split) {
    case Split::q_heads:
      return in_elements(layout.layer(model, layer).heads, model.layers[layer].attention.heads);
    case Split::kv_heads:
      return in_elements(layout.layer(model, layer).kv_heads, model.layers[layer].attention.kv_heads);
    case Split::q_norm:
    case Split::kv_norm:
      if (model.layers[layer].attention.query_key_norm != QueryKeyNorm::full) break;
      return part_of(layout, model, split == Split::q_norm ? Split::q_heads : Split::kv_heads, layer, extent);
    case Split::vocabulary:
      return layout.vocabulary;
    case Split::intermediate_size:
      return layout.layer(model, layer).intermediate_size;
    case Split::mlp_size:
      return layout.layer(model, layer).mlp_size;
    case Split::none:
      break;
  }
  return {0, extent};
}

namespace {

/// visit(row, rows, columns, copies) for each weight of the table that the layout's rank holds, padding included. By
/// kind of layer, so that the cost does not grow with the layers.
template <class Visit>
void for_each_held(const Layout& layout, const ModelConfig& model, const Visit& visit) {
  std::vector<std::int64_t> layers(model.layers.kinds().size(), 0);
  std::vector<std::int64_t> example(layers.size(), -1);
  for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
    const auto kind = static_cast<std::size_t>(model.layers.kind_of(layer));
    ++layers[kind];
    example[kind] = layer;
  }
  const auto add = [&](const TensorRow& row, int layer, std::int64_t copies) {
    if (!has_weight(model, row.weight, layer)) return;
    const WeightSpec spec = weight_spec(model, row.weight, layer, row.scope == TensorScope::expert ? 0 : -1);
    const Range rows = part_of(layout, model, spec.row_split, layer, spec.rows);
    const Range cols = part_of(layout, model, spec.col_split, layer, spec.cols);
    const std::int64_t padding = spec.row_split == Split::vocabulary ? layout.vocabulary_padding : 0;
    visit(row, rows.count + padding, cols.count, copies);
  };
  for (const TensorRow& row : tensor_table()) {
    if (row.scope == TensorScope::first_stage) {
      if (layout.first_stage()) add(row, -1, 1);
      continue;
    }
    if (row.scope == TensorScope::last_stage) {
      const bool tied = row.weight == Weight::head && model.tie_word_embeddings && layout.first_stage();
      if (layout.last_stage() && !tied) add(row, -1, 1);
      continue;
    }
    for (std::size_t kind = 0; kind < layers.size(); ++kind) {
      if (layers[kind] == 0) continue;
      const std::int64_t experts = row.scope == TensorScope::expert ? layout.kinds[kind].experts.count : 1;
      add(row, static_cast<int>(example[kind]), layers[kind] * experts);
    }
  }
}

}  // namespace

ParameterCount held_parameters(const Layout& layout, const ModelConfig& model) {
  ParameterCount parameters;
  for_each_held(layout, model, [&](const TensorRow& row, std::int64_t rows, std::int64_t cols, std::int64_t copies) {
    parameters[row.part] += rows * cols * copies;
  });
  return parameters;
}

WeightBytes held_weight_bytes(const Layout& layout, const ModelConfig& model, int element_bytes) {
  WeightBytes bytes;
  for_each_held(layout, model, [&](const TensorRow& row, std::int64_t rows, std::int64_t cols, std::int64_t copies) {
    StoredBytes one{.values = static_cast<double>(rows * cols) * element_bytes};
    if (is_quantised(model, row.weight)) one = quantised_bytes(model.quantisation, model.weight_block, rows, cols);
    const bool at_ends = row.part == ParameterPart::embedding || row.part == ParameterPart::head;
    double& part = row.part == ParameterPart::attention ? bytes.attention
                   : row.part == ParameterPart::experts ? bytes.experts
                   : at_ends                            ? bytes.ends
                                                        : bytes.rest;
    part += one.total() * static_cast<double>(copies);
    bytes.scales += one.scales * static_cast<double>(copies);
  });
  return bytes;
}

}  // namespace shardproof
