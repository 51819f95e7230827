#include <algorithm>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/model/tensors.h"

namespace shardproof {

double estimated_bytes(const Plan& plan, ops::Format format) {
  const ModelConfig& model = plan.model;
  constexpr double kScalar = 8;  // of exact, which runs whatever the format
  // Ranks that hold replicas share them, so the weights count once; slices of kv heads overlap nowhere.
  double weights = 0;
  double largest_weight = 0;
  for (const TensorCount& count : tensor_counts(model)) {
    weights += static_cast<double>(count.elements());
    largest_weight = std::max(largest_weight, static_cast<double>(count.rows) * static_cast<double>(count.cols));
  }

  const auto tokens = static_cast<double>(plan.workload.tokens());
  const auto hidden = static_cast<double>(model.hidden_size);
  // Of all layers' taps, and the widest of any layer.
  double tap_width = 0, q_width = 0, kv_width = 0, top_k = 0, intermediate = 0;
  for (int kind = 0; kind < static_cast<int>(model.layers.kinds().size()); ++kind) {
    const LayerSpec& layer = model.layers.kinds()[static_cast<std::size_t>(kind)];
    const auto q = static_cast<double>(layer.attention.heads * layer.attention.head_dim);
    const auto kv = static_cast<double>(layer.attention.kv_heads * layer.attention.head_dim);
    const auto k = static_cast<double>(layer.feed_forward.top_k);
    tap_width += static_cast<double>(model.layers.count_of(kind)) *
                 (6 * hidden + 2 * q + 2 * kv + static_cast<double>(layer.feed_forward.num_experts) + 2 * k);
    q_width = std::max(q_width, q);
    kv_width = std::max(kv_width, kv);
    top_k = std::max(top_k, k);
    intermediate = std::max(intermediate, static_cast<double>(layer.feed_forward.intermediate_size));
  }
  const auto vocabulary = static_cast<double>(model.vocab_size);
  // Expected taps in float64 of each verdict, and a byte an element for the parts that have arrived.
  const double verdicts = format == ops::Format::exact ? 1 : 2;
  const double taps = tokens * (tap_width + 2 * hidden + vocabulary) * (8 * verdicts + 1);
  // What all ranks hold at once: the stream and a layer's working set on every tp rank, and the logits.
  const double replicas = plan.parallel.tp;
  const double working = tokens * kScalar *
                         (replicas * 6 * hidden + 2 * (q_width + kv_width) * std::max(1.0, replicas / 4) +
                          4 * top_k * hidden + 3 * top_k * intermediate + vocabulary);
  // The ranks' weights come and go, but for what is kept and what is in use; each reference holds a whole tensor.
  const double held =
      std::min(weights * kScalar, static_cast<double>(kWeightBytesKept)) + largest_weight * 8 * 3 * verdicts;
  // Every rank has some bookkeeping.
  const double bookkeeping = 64e6 + 200e3 * plan.world();
  return held + taps + working + bookkeeping;
}

}  // namespace shardproof
