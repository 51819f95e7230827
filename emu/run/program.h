// The MoE transformer as every rank of a plan runs it, on numbers or dry.
//
// Written once, for any plan: column-parallel QKV, local heads, row-parallel output with an all-reduce over tp (or
// reduce-scatter and all-gather under sequence parallelism), router, dispatch by all-to-all over ep with each expert
// split over etp, combine; pipeline stages pass activations by P2P; vocabulary-parallel embedding and head. Tensors are
// matrices [tokens, width]; tokens are those of one microbatch of one data-parallel replica.
#pragma once

#include <vector>

#include "emu/plan/timetable.h"
#include "emu/run/context.h"

namespace shardproof {

/// One item of the rank's timetable: a microbatch through a chunk of the layers that it holds, with the embedding
/// before the first stage's and the head after the last stage's.
template <class T>
Task<> run_item(Context<T>& ctx, const WorkItem& item);

/// An item with none but these of its layers.
template <class T>
Task<> run_layers(Context<T>& ctx, std::vector<int> layers);

/// An item of two microbatches, each layer in turn: while the rows of one are under way to their experts or back, the
/// other computes.
///
///   attention 0, send 0 | return 1 of the layer before, attention 1, send 1 | experts 0, return 0 | experts 1, ...
template <class T>
Task<> run_pair(Context<T>& first, Context<T>& second, const WorkItem& item);

}  // namespace shardproof
