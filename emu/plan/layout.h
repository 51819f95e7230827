// What one rank holds under a plan: its layers, heads, vocabulary, experts. Every slice of a weight follows from here.
#pragma once

#include <memory>
#include <vector>

#include "emu/model/tensors.h"
#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// What the rank holds of each layer of one kind.
struct LayerLayout {
  Range heads;                    ///< query heads
  Range kv_heads;                 ///< at least one: head t * kv / tp where tp exceeds them
  Range first_kv_heads;           ///< those that no rank of tp before it holds: each head is one rank's
  Range experts;                  ///< of the layer, physical ones (expert_map.h)
  std::int64_t most_experts = 0;  ///< that an ep rank holds: the first hold one more where they do not divide
  Range intermediate_size;        ///< part of every local expert
  Range mlp_size;                 ///< part of the MLP that serves every token
  std::vector<int> expert_owner;  ///< physical expert -> its index along ep
};

/// Example, tp2 ep4 on 4 experts and 8 heads: the rank at tp 1, ep 3 holds heads {4, 4} and experts {3, 1}.
struct Layout {
  Coordinates at;
  Parallel parallel;
  Range layers;                         ///< of its stage; see stages.h
  Range vocabulary;                     ///< rows of embedding and head
  std::int64_t vocabulary_padding = 0;  ///< rows that it holds beside them: of no token, never looked up nor chosen
  std::vector<LayerLayout> kinds;       ///< by kind of layer (LayerList)
  /// By layer; null where every expert is there once, in order.
  std::shared_ptr<const std::vector<ExpertMap>> expert_maps = nullptr;

  bool first_stage() const { return at.pp == 0; }
  bool last_stage() const { return at.pp == parallel.pp - 1; }
  const LayerLayout& layer(const ModelConfig& model, std::int64_t index) const {
    return kinds[static_cast<std::size_t>(model.layers.kind_of(index))];
  }
  /// The expert that a physical one is.
  std::int64_t logical_expert(std::int64_t index, std::int64_t physical) const {
    return expert_maps == nullptr ? physical : (*expert_maps)[static_cast<std::size_t>(index)].logical(physical);
  }
};

/// The rows of the embedding and the head with their padding (Parallel::make_vocab_size_divisible_by).
std::int64_t padded_vocabulary(const ModelConfig& model, const Parallel& parallel);
/// The rows of tokens that a rank of tp holds of it.
Range vocabulary_of(const ModelConfig& model, const Parallel& parallel, int tp);

/// The maps of a plan's layers, of which dense ones have none (an empty one); null where every expert is there once, in
/// order.
std::shared_ptr<const std::vector<ExpertMap>> expert_maps_of(const ModelConfig& model, const Parallel& parallel,
                                                             const Routing& routing);

/// The plan must be valid (validate.h). `maps` are expert_maps_of() the plan.
Layout make_layout(const ModelConfig& model, const Mesh& mesh, int rank,
                   std::shared_ptr<const std::vector<ExpertMap>> maps = nullptr);

/// The part of 0..extent-1 that the layout holds of a dim split so, in a layer (-1 outside the layers); heads are
/// counted in elements.
Range part_of(const Layout& layout, const ModelConfig& model, Split split, int layer, std::int64_t extent);

/// visit(const WeightSpec&, Range rows, Range cols) for every slice that the layout's rank holds, in program order. A
/// tied head on a stage that also embeds is the same tensor, and is not visited again.
template <class Visit>
void for_each_slice(const Layout& layout, const ModelConfig& model, const Visit& visit) {
  const auto scope = [&](TensorScope wanted, int layer, int expert) {
    for (const TensorRow& row : tensor_table()) {
      if (row.scope != wanted || !has_weight(model, row.weight, layer)) continue;
      if (row.weight == Weight::head && model.tie_word_embeddings && layout.first_stage()) continue;
      const WeightSpec spec = weight_spec(model, row.weight, layer, expert);
      visit(spec, part_of(layout, model, spec.row_split, layer, spec.rows),
            part_of(layout, model, spec.col_split, layer, spec.cols));
    }
  };
  if (layout.first_stage()) scope(TensorScope::first_stage, -1, -1);
  for (auto layer = static_cast<int>(layout.layers.begin); layer < layout.layers.end(); ++layer) {
    scope(TensorScope::layer, layer, -1);
    const Range experts = layout.layer(model, layer).experts;
    for (std::int64_t expert = experts.begin; expert < experts.end(); ++expert) {
      scope(TensorScope::expert, layer, static_cast<int>(layout.logical_expert(layer, expert)));
    }
  }
  if (layout.last_stage()) scope(TensorScope::last_stage, -1, -1);
}

/// Elements of the weights that the layout's rank holds, by part, padding included.
ParameterCount held_parameters(const Layout& layout, const ModelConfig& model);

/// Bytes of weights: attention and experts alone, embedding and head, all others; scales among them, and of them alone.
struct WeightBytes {
  double attention = 0;
  double experts = 0;
  double ends = 0;  ///< embedding and head
  double rest = 0;
  double scales = 0;

  double total() const { return attention + experts + ends + rest; }
};
/// Of what the layout's rank holds: quantised weights as they are stored, the others of so many bytes an element.
WeightBytes held_weight_bytes(const Layout& layout, const ModelConfig& model, int element_bytes);

}  // namespace shardproof
