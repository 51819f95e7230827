// What every rank of a plan holds, computes and sends, by formula: nothing is run.
//
// The same walk over the layers as emu/run's program, with sums in place of tensors. Routing is taken as even: each
// expert of a layer receives tokens * top_k / num_experts rows. Figures that rest on that are marked routed; their sums
// over the world do not depend on it. A pass is one forward over the workload: prefill takes every token of every
// sequence, decode one more token of each sequence after its `length` tokens.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "emu/model/tensors.h"
#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"

namespace shardproof {

struct OpTotal {
  std::string_view op;  ///< as in the run's trace: "attention.q", "moe.expert", ...
  double flops = 0;
  bool routed = false;
};

/// Collectives of one operation and purpose over the rank's group of one axis.
struct TrafficTotal {
  Axis axis = Axis::tp;
  std::string_view operation;  ///< "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"
  int group_size = 1;
  double calls = 0;
  double elements = 0;    ///< this rank's input
  int element_bytes = 0;  ///< on the wire
  double sent_bytes =
      0;  ///< by the rank: n-1 of n parts of the input, twice for all_reduce; all_gather its input n-1 times
  bool routed = false;
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
  Range layers, heads, kv_heads, experts, intermediate_size, vocabulary;
  ParameterCount parameters;
  std::int64_t sequences = 0;             ///< of the batch, over all microbatches of the rank's replica
  std::int64_t tokens = 0;                ///< of these
  double kv_cache_bytes = 0;              ///< keys and values of the workload's tokens
  double kv_cache_reserved_bytes = 0;     ///< the same with every sequence as long as the longest
  double activation_bytes = 0;            ///< largest set of tensors alive at once in a forward of one microbatch
  double training_activation_bytes = 0;   ///< kept for the backward pass by the microbatches in flight under 1F1B
  double communication_buffer_bytes = 0;  ///< input and output of the largest collective
  PassFigures prefill;
  PassFigures decode;
};

/// Bytes of one element of the model's dtype.
int dtype_bytes(const ModelConfig& model);

/// One for each rank. The plan must be valid.
std::vector<RankFigures> rank_figures(const Plan& plan);

}  // namespace shardproof
