// What every rank of a plan holds, computes and sends, on paper: folds over the records of a dry run.
//
// Tokens go where the workload says (Routing), whole ones. A pass is one forward over
// the workload: prefill takes every token of every sequence, decode one more token of each sequence after its `length`
// tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/model/tensors.h"
#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"
#include "emu/run/dry_run.h"
#include "emu/run/trace.h"
#include "ops/format.h"

namespace shardproof {

struct OpTotal {
  Op op{};
  double flops = 0;
};

/// Collectives of one operation and width over the rank's group of one axis.
struct TrafficTotal {
  Axis axis = Axis::tp;
  Operation operation{};
  int group_size = 1;
  double calls = 0;
  double elements = 0;    ///< this rank's input
  int element_bytes = 0;  ///< on the wire
  /// By the rank: all but what stays of an all-to-all or reduce-scatter, 2 (n-1)/n of the input of an all_reduce, the
  /// input of an all_gather n-1 times.
  double sent_bytes = 0;
};

struct PassFigures {
  std::vector<OpTotal> ops;
  std::vector<TrafficTotal> traffic;
  double flops() const;
  double sent_bytes() const;
};

struct RankFigures {
  int rank = 0;
  Coordinates at;
  std::int64_t expert_layers = 0;  ///< of its layers, those with experts
  Range layers, heads, kv_heads, experts, intermediate_size, vocabulary;
  ParameterCount parameters;
  WeightBytes weights;         ///< as the checkpoint stores them
  std::int64_t sequences = 0;  ///< of the batch, over all microbatches of the rank's replica
  std::int64_t tokens = 0;     ///< of these
  double kv_cache_bytes = 0;   ///< keys and values of the workload's tokens
  /// Tokens that there is room for: every sequence as long as the longest, or the blocks in which requests are served.
  std::int64_t kv_cache_reserved_tokens = 0;
  double kv_cache_reserved_bytes = 0;     ///< their keys and values
  double activation_bytes = 0;            ///< largest set of tensors alive at once in a forward of one microbatch
  double training_activation_bytes = 0;   ///< kept for the backward pass by the microbatches in flight under 1F1B
  double communication_buffer_bytes = 0;  ///< input and output of the largest collective
  PassFigures prefill;
  PassFigures decode;
};

/// What the plan's cache holds an element in.
int cache_bytes(const Plan& plan);
/// The format that the model's dtype names.
ops::Format format_of(const ModelConfig& model);
/// Bytes of one element of it.
int dtype_bytes(const ModelConfig& model);

/// What a rank does in a pass, from its records.
PassFigures pass_figures(const RankTrace& trace);

/// One for each rank. The plan must be valid.
std::vector<RankFigures> rank_figures(const Plan& plan);
/// The same without `decode`, from the traces of a prefill that was run dry: for who asks what a rank holds.
std::vector<RankFigures> prefill_figures(const Plan& plan, const DryTraces& prefill);

}  // namespace shardproof
