// Whether a run shows what its model has beside others: windows, sinks, biases of a choice, multipliers.
//
// A window that no sequence is longer than, or groups that no token would choose beyond, leave every bit as it is; then
// agreement proves nothing of them. Each such feature is taken out of a kind of layer at a time, and the op that has it
// computes anew from the reference's own inputs: last tokens first, until one row differs.
#pragma once

#include <vector>

#include "emu/input/problem.h"
#include "emu/judge/prepared.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// Of a reference in `exact`: a problem for each feature that changes no bit of any layer of its kind, except what
/// nothing can show: what turns with the position where every sequence has one token.
std::vector<Problem> idle_features(const Plan& plan, const PreparedReference& reference);

}  // namespace shardproof
