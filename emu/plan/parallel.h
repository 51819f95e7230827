// The parallel degrees of a plan, after defaults and derivation.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/expert_map.h"

namespace shardproof {

/// Attention and experts each span the whole world: tp * cp * dp * pp = world = etp * ep * edp * pp.
struct Parallel {
  int tp = 1;       ///< tensor parallel degree of attention, embedding and head
  int cp = 1;       ///< context parallel degree
  int dp = 1;       ///< data parallel degree (of attention)
  int pp = 1;       ///< pipeline stages
  int ep = 1;       ///< expert parallel degree
  int etp = 1;      ///< tensor parallel degree inside an expert
  int edp = 1;      ///< replicas of each expert; derived
  bool sp = false;  ///< sequence parallelism: activations between tensor-parallel regions are sharded over tp
  /// How many layers each stage runs; empty: as even as they divide, the first stages one more.
  std::vector<std::int64_t> layers_per_stage = {};
  /// The vocabulary is padded to a multiple of this times tp, every rank holding as many rows, the last ones perhaps
  /// nobody's; 0: not padded, split as even as it divides.
  std::int64_t make_vocab_size_divisible_by = 0;
  ExpertPlacement experts = {};

  int world() const { return tp * cp * dp * pp; }
  bool operator==(const Parallel&) const = default;
};

}  // namespace shardproof
