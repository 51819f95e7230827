#include <algorithm>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/model/tensors.h"

namespace shardproof {

double estimated_bytes(const Plan& plan, ops::Format format) {
  const ModelConfig& model = plan.model;
  constexpr double kScalar = 8;  // of exact, which runs whatever the format
  double weights = 0;
  double largest_weight = 0;
  const auto elements = [](const WeightSpec& spec) {
    return static_cast<double>(spec.rows) * static_cast<double>(spec.cols);
  };
  // Ranks that hold replicas share them, so the weights count once; slices of kv heads overlap nowhere.
  const auto add = [&](const WeightSpec& spec, double count) {
    weights += count * elements(spec);
    largest_weight = std::max(largest_weight, elements(spec));
  };
  const auto layers = static_cast<double>(model.num_layers);
  for (auto make : {registry::attention_norm, registry::attention_q, registry::attention_k, registry::attention_v,
                    registry::attention_output, registry::moe_norm, registry::router}) {
    add(make(model, 0), layers);
  }
  for (auto make : {registry::expert_gate, registry::expert_up, registry::expert_down}) {
    add(make(model, 0, 0), layers * static_cast<double>(model.num_experts));
  }
  add(registry::embedding(model), 1);
  if (!model.tie_word_embeddings) add(registry::head(model), 1);
  add(registry::final_norm(model), 1);

  const auto tokens = static_cast<double>(plan.workload.tokens());
  const auto hidden = static_cast<double>(model.hidden_size);
  const auto q_width = static_cast<double>(model.num_heads * model.head_dim);
  const auto kv_width = static_cast<double>(model.num_kv_heads * model.head_dim);
  const auto top_k = static_cast<double>(model.top_k);
  const auto per_layer = 6 * hidden + 2 * q_width + 2 * kv_width + static_cast<double>(model.num_experts) + 2 * top_k;
  const auto vocabulary = static_cast<double>(model.vocab_size);
  // Expected taps in float64 of each verdict, and a byte an element for the parts that have arrived.
  const double verdicts = format == ops::Format::exact ? 1 : 2;
  const double taps = tokens * (layers * per_layer + 2 * hidden + vocabulary) * (8 * verdicts + 1);
  // What all ranks hold at once: the stream and a layer's working set on every tp rank, and the logits.
  const double replicas = plan.parallel.tp;
  const double working = tokens * kScalar *
                         (replicas * 6 * hidden + 2 * (q_width + kv_width) * std::max(1.0, replicas / 4) +
                          4 * top_k * hidden + 3 * top_k * static_cast<double>(model.expert_width) + vocabulary);
  // The ranks' weights come and go, but for what is kept and what is in use; each reference holds a whole tensor.
  const double held =
      std::min(weights * kScalar, static_cast<double>(kWeightBytesKept)) + largest_weight * 8 * 3 * verdicts;
  // Every rank has some bookkeeping.
  const double bookkeeping = 64e6 + 200e3 * plan.world();
  return held + taps + working + bookkeeping;
}

}  // namespace shardproof
