// Activations that a rank holds: a fold over its records.
#pragma once

#include "emu/model/config.h"
#include "emu/plan/layout.h"
#include "emu/run/trace.h"

namespace shardproof {

/// Elements of the microbatch that has the most.
struct Activations {
  double alive = 0;  ///< at once, at the worst point of a forward
  /// That a backward pass reads: of each layer the inputs of both norms and of both regions, q, k, v, context, router
  /// logits, permuted rows, gate, up and activation, expert outputs. Attention scores are recomputed.
  double kept = 0;
  int microbatches = 0;
};

Activations activations_of(const RankTrace& trace, const ModelConfig& model, const Layout& layout);

}  // namespace shardproof
