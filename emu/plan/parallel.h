// The parallel degrees of a plan, after defaults and derivation.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/expert_map.h"

namespace shardproof {

/// How the queries of a rank of cp come to keys and values that other ranks hold (Megatron's cp_comm_type).
enum class CpComm {
  p2p,         ///< a ring: keys and values travel, what each rank's give is merged by log-sum-exp
  all_gather,  ///< of keys and values
  a2a,         ///< all rows of some of the heads (Ulysses, Jacobs et al. 2023, arXiv 2309.14509)
};
/// "p2p", "all_gather", "a2a".
constexpr const char* to_string(CpComm comm) {
  return comm == CpComm::p2p ? "p2p" : comm == CpComm::all_gather ? "all_gather" : "a2a";
}

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
  CpComm cp_comm = CpComm::p2p;
  /// How many layers each stage runs; empty: as even as they divide, the first stages one more.
  std::vector<std::int64_t> layers_per_stage = {};
  /// The vocabulary is padded to a multiple of this times tp, every rank holding as many rows, the last ones perhaps
  /// nobody's; 0: not padded, split as even as it divides.
  std::int64_t make_vocab_size_divisible_by = 0;
  ExpertPlacement experts = {};

  int world() const { return tp * cp * dp * pp; }
  /// Attention is made of parts, one for the keys of each rank of cp.
  bool in_ring() const { return cp > 1 && cp_comm == CpComm::p2p; }
  bool operator==(const Parallel&) const = default;
};

}  // namespace shardproof
