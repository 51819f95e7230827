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
  a2a_p2p,     ///< both: heads are dealt out inside groups of neighbours, keys and values go round a ring of these
};
/// "p2p", "all_gather", "a2a", "a2a+p2p".
constexpr const char* to_string(CpComm comm) {
  constexpr const char* kNames[] = {"p2p", "all_gather", "a2a", "a2a+p2p"};
  return kNames[static_cast<int>(comm)];
}

/// How tokens come to the experts that they choose, and what these make of them back (vLLM's all2all_backend, SGLang's
/// moe_a2a_backend). Every way allows every degree but where it says so.
enum class DispatchComm {
  all_to_all,  ///< over ep, each row to the owners of its experts and back
  /// Over ep: of every row with its choices and weights; a rank weighs what its experts make of all of them, and these
  /// partial sums are reduce-scattered (vLLM's allgather_reducescatter, Megatron's allgather dispatcher).
  all_gather,
  /// Nothing is sent: ep and etp lie inside tp, whose ranks have the same tokens, so each routes all of them; the
  /// partial sums are all-reduced over ep (SGLang without all-to-all). ep * etp divides tp, no sp, and replicas of an
  /// expert are not chosen by who asks.
  all_reduce,
};
/// "all_to_all", "all_gather", "all_reduce".
constexpr const char* to_string(DispatchComm dispatch) {
  return dispatch == DispatchComm::all_to_all   ? "all_to_all"
         : dispatch == DispatchComm::all_gather ? "all_gather"
                                                : "all_reduce";
}

/// What is computed while tokens are under way to their experts or back (an all-to-all over an ep above 1).
enum class Overlap {
  none,
  shared_expert,  ///< the MLP that serves every token, while rows go to the experts (Megatron's and DeepSeek's)
  /// Two half batches, the microbatches 2i and 2i + 1 of a step: what one computes, while the other's rows go to the
  /// experts or come back (DeepSeek's dual batch, SGLang's two-batch overlap). As many microbatches as pairs need.
  two_batch,
};
/// "none", "shared_expert", "two_batch".
constexpr const char* to_string(Overlap overlap) {
  return overlap == Overlap::none ? "none" : overlap == Overlap::shared_expert ? "shared_expert" : "two_batch";
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
  /// Decode context parallelism: so many ranks in a row of a tp group, which hold the same key-value head, share out
  /// the cached tokens of each sequence (cache_share.h). Of tp, hence no factor of the world.
  int dcp = 1;
  std::int64_t dcp_interleave = 1;  ///< tokens in a row that a rank of dcp keeps
  CpComm cp_comm = CpComm::p2p;
  int cp_a2a = 1;  ///< of a2a+p2p: neighbours along cp that deal out heads; the ring has cp / cp_a2a members
  DispatchComm dispatch = DispatchComm::all_to_all;
  Overlap overlap = Overlap::none;
  /// How many layers each stage runs; empty: as even as they divide, the first stages one more.
  std::vector<std::int64_t> layers_per_stage = {};
  /// The vocabulary is padded to a multiple of this times tp, every rank holding as many rows, the last ones perhaps
  /// nobody's; 0: not padded, split as even as it divides.
  std::int64_t make_vocab_size_divisible_by = 0;
  ExpertPlacement experts = {};

  int world() const { return tp * cp * dp * pp; }
  /// Attention is made of parts, one for the keys of each rank of cp.
  bool in_ring() const { return cp > 1 && (cp_comm == CpComm::p2p || cp_comm == CpComm::a2a_p2p); }
  /// Ranks of cp among which heads are dealt out, and members of the ring, each of which is as many ranks.
  int heads_dealt() const { return cp_comm == CpComm::a2a ? cp : cp_comm == CpComm::a2a_p2p ? cp_a2a : 1; }
  int ring() const { return in_ring() ? cp / heads_dealt() : 1; }
  /// Every rank of tp routes all tokens of its replica.
  bool routes_alike() const { return dispatch == DispatchComm::all_reduce; }
  /// Of what experts make of a token, every rank of ep has a partial sum.
  bool sums_over_ep() const { return ep > 1 && dispatch != DispatchComm::all_to_all; }
  /// Parts that attention is made of and that are merged: one for the keys of each member of a ring over cp, or of dcp,
  /// over which latents of tokens in the plain form are gathered instead; 0: it is whole.
  int key_parts(bool latent) const { return in_ring() ? ring() : dcp > 1 && !latent ? dcp : 0; }
  /// The same of latent attention in its absorbed form: one for the latents that each rank of dcp keeps.
  int latent_parts() const { return dcp > 1 ? dcp : 0; }
  bool operator==(const Parallel&) const = default;
};

}  // namespace shardproof
