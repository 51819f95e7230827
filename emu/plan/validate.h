// What is wrong with a plan, all of it at once.
#pragma once

#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

/// Worlds larger than this are refused: a rank's bookkeeping alone would exhaust an ordinary machine.
inline constexpr int kMaxWorld = 65536;

/// Every rule that the plan breaks, each with its arithmetic and, where one exists, the nearest plan that keeps it.
/// Empty means that a Mesh may be built and the plan run. Total over any values: nothing overflows or divides by zero.
///
/// Rules: world = tp*cp*dp*pp <= kMaxWorld and <= hardware.gpus; etp*ep divides tp*cp*dp (edp is the quotient);
/// num_heads % tp, num_kv_heads and tp divide one another; num_heads % num_kv_heads; num_experts % ep;
/// intermediate_size % etp; pp <= num_layers; head_dim even; 1 <= top_k <= num_experts; vocab_size >= tp; sequence
/// parallelism needs tp > 1. Layers, batch and vocabulary may divide unevenly.
std::vector<Problem> validate(const Plan& plan);

}  // namespace shardproof
