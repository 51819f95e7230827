#include "emu/plan/layout.h"

#include <algorithm>

#include "emu/plan/stages.h"

namespace shardproof {

Layout make_layout(const ModelConfig& model, const Mesh& mesh, int rank) {
  const Parallel& parallel = mesh.parallel();
  const Coordinates at = mesh.coordinates(rank);
  const std::int64_t kv_count = std::max<std::int64_t>(1, model.num_kv_heads / parallel.tp);
  Layout layout{
      .at = at,
      .parallel = parallel,
      .layers = Stages(model, parallel).layers_of(at.pp),
      .heads = partition(model.num_heads, parallel.tp, at.tp),
      .kv_heads = {at.tp * model.num_kv_heads / parallel.tp, kv_count},
      .vocabulary = partition(model.vocab_size, parallel.tp, at.tp),
      .experts = partition(model.num_experts, parallel.ep, at.ep),
      .expert_width = partition(model.expert_width, parallel.etp, at.etp),
      .expert_owner = std::vector<int>(static_cast<std::size_t>(model.num_experts)),
  };
  for (int owner = 0; owner < parallel.ep; ++owner) {
    const Range held = partition(model.num_experts, parallel.ep, owner);
    std::fill_n(layout.expert_owner.begin() + held.begin, held.count, owner);
  }
  return layout;
}

Range part_of(const Layout& layout, const ModelConfig& model, Split split, std::int64_t extent) {
  const auto in_elements = [&](Range heads) {
    return Range{heads.begin * model.head_dim, heads.count * model.head_dim};
  };
  switch (split) {
    case Split::q_heads:
      return in_elements(layout.heads);
    case Split::kv_heads:
      return in_elements(layout.kv_heads);
    case Split::vocabulary:
      return layout.vocabulary;
    case Split::expert_width:
      return layout.expert_width;
    case Split::none:
      break;
  }
  return {0, extent};
}

std::vector<WeightSpec> weights_of(const Layout& layout, const ModelConfig& model) {
  std::vector<WeightSpec> specs;
  if (layout.first_stage()) specs.push_back(registry::embedding(model));
  for (auto layer = static_cast<int>(layout.layers.begin); layer < layout.layers.end(); ++layer) {
    for (auto make : {registry::attention_norm, registry::attention_q, registry::attention_k, registry::attention_v,
                      registry::attention_output, registry::moe_norm, registry::router}) {
      specs.push_back(make(model, layer));
    }
    for (auto expert = static_cast<int>(layout.experts.begin); expert < layout.experts.end(); ++expert) {
      for (auto make : {registry::expert_gate, registry::expert_up, registry::expert_down}) {
        specs.push_back(make(model, layer, expert));
      }
    }
  }
  if (layout.last_stage()) {
    specs.push_back(registry::final_norm(model));
    // A tied head on a stage that also embeds is the same tensor.
    if (!(model.tie_word_embeddings && layout.first_stage())) specs.push_back(registry::head(model));
  }
  return specs;
}

}  // namespace shardproof
