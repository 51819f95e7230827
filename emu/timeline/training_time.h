// How long a step of training takes, as far as it follows from the dry run of its forward pass.
//
// No backward pass is run here. Its time follows from the forward's records by rule, for dense models:
// - Of a product (of weights, of attention, of an MLP) there are two like it: the gradients of its two factors. All
//   else has one of its own size.
// - A call over tp or cp has its mirror image, of as many bytes (Korthikanti et al. 2022, arXiv 2205.05198, section
//   4.2).
// - Recomputation runs a layer's forward pass once more, calls included, or attention's core alone.
// - One forward, one backward (1F1B) in interleaved chunks (Narayanan et al. 2021, arXiv 2104.04473, section 2.2): of m
//   microbatches over stages whose slowest takes t for one, in v chunks,
//     m t + (the other stages' seconds for one) / v,
//   and at each of the v ends of a stage the stream goes on, and its gradient back, in tp parts (section 4.1).
// - Gradients are all-reduced over dp at the end, hidden behind nothing. Adam reads and writes 30 bytes a parameter:
//   gradient, master weight and two moments in fp32, and the weight.
#pragma once

#include <cstdint>

#include "emu/plan/plan.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/projection.h"

namespace shardproof {

enum class Recompute { none, attention, layer };

struct TrainingStep {
  std::int64_t batch = 1;       ///< sequences of all replicas
  std::int64_t microbatch = 1;  ///< of a replica, at once; divides batch / dp
  int chunks = 1;               ///< of a stage's layers, interleaved
  Recompute recompute = Recompute::none;
  /// Scores are written to memory, and every pair of a query and a key is computed: softmax and dropout as kernels of
  /// their own (5 bytes a pair kept, 13 moved; section 4.1 of arXiv 2205.05198).
  bool scores_in_memory = false;
  /// Calls over tp are under way beside the products that make or take their rows.
  bool hides_tp = false;
};

/// `plan` has one sequence, of so many tokens; its batch and microbatches are the step's. Seconds.
double training_seconds(const Plan& plan, const TrainingStep& step, const HardwareModel& hardware,
                        const ProjectionOptions& options);

}  // namespace shardproof
