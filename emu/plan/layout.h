// What one rank holds under a plan: its layers, heads, vocabulary, experts. Every slice of a weight follows from here.
#pragma once

#include <vector>

#include "emu/model/tensors.h"
#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// Example, tp2 ep4 on 4 experts and 8 heads: the rank at tp 1, ep 3 holds heads {4, 4} and experts {3, 1}.
struct Layout {
  Coordinates at;
  Parallel parallel;
  Range layers;                   ///< of its stage; see stages.h
  Range heads;                    ///< query heads
  Range kv_heads;                 ///< at least one: head t * kv / tp where tp exceeds them
  Range vocabulary;               ///< rows of embedding and head
  Range experts;                  ///< of each layer
  Range expert_width;             ///< part of every local expert
  std::vector<int> expert_owner;  ///< expert -> its index along ep; size num_experts

  bool first_stage() const { return at.pp == 0; }
  bool last_stage() const { return at.pp == parallel.pp - 1; }
};

/// The plan must be valid (validate.h).
Layout make_layout(const ModelConfig& model, const Mesh& mesh, int rank);

/// The part of 0..extent-1 that the layout holds of a dim split so; head_dim turns heads into elements.
Range part_of(const Layout& layout, const ModelConfig& model, Split split, std::int64_t extent);

/// Every weight that the layout's rank holds, in program order.
std::vector<WeightSpec> weights_of(const Layout& layout, const ModelConfig& model);

}  // namespace shardproof
