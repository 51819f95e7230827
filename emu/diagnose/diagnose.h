// Names the cause of a wrong run from the signature of its error.
//
// Every cause is a hypothesis of what the ranks did: under it, the values that they should then have got are computed
// from the reference's own taps and weights, and it is named only when all wrong rows of the first wrong tap hold just
// those values. First of all comes the null hypothesis: the op itself gives them on right inputs, so that nothing is
// said of the sharding. Nothing is taken from who injected what. Names:
//   op_differs           the op, or the reference, is wrong
//   reduction_dropped    a rank holds its own partial sum
//   partial_sum_missing, partial_sum_doubled, averaged, wrong_reduction
//   partial_group        the sum over part of the group     wrong_group      reduced over the ranks of another axis
//   reduced_twice        the sum times the group's size     counted_n_times  a replica or a term counted n times
//   term_on_every_rank   a replicated term added n times    constant_offset  a constant, or a row, added to all
//   wrong_slice          a rank holds another's slice       weights_of_another_layer
//   weights_exchanged    two of one shape: k and v, gate and up, or norms of queries and keys
//   heads_permuted, wrong_kv_head, vocabulary_shifted, positions, sequence_boundaries
//   head_tying           the head's own tensor used where it is the embedding, or the other way
//   cache_unwritten      a freed or unwritten slot read     block_table      another request's keys
//   cache_length         too few or too many of its own keys  cache_slots  written a block beside their own
//   past_not_weighed     a chunk's own keys and those before it are averaged
//   blocks_permuted      of a scheme of one's own: columns in blocks, or blocks that other ranks should hold
//   rows_permuted        rows hold other rows' values       microbatch_order rows of another microbatch
//   gather_dropped       other ranks' rows are zero         replicas_differ, zero, not_finite
//   expert_map           another expert's output            expert_missing, tokens_permuted
//   read_before_arrival  rows read before the call that brings them is awaited
//   rotary_pairing       elements turn in other pairs       sliding_window   a window of another width
//   masked_groups_zero   closed groups' scores are 0        selection_bias_in_weights
//   replicas_summed      every replica of an expert adds its output
//   router_weights_permuted, router_weights_scaled, router_weights_squared, slot_dropped
//   wrong_residual_sum   other multiples of the residual and of what is added to it
//   layer_missing, layer_skipped, layer_repeated, layer_order
//   rank_error           a rank's program threw             rounding         right in exact
//   schedule_dependent   of a scheme: another schedule gives other bits
//   unknown              no signature fits
// Of a run that did not end (stall.h):
//   call_sequence, call_arguments, split_sizes, message_lost, invalid_call
#pragma once

#include <vector>

#include "emu/diagnose/capture.h"
#include "emu/judge/prepared.h"
#include "emu/judge/report.h"

namespace shardproof {

struct DiagnosisInput {
  const Plan& plan;
  const PreparedReference& reference;
  const Divergence& divergence;
  const std::vector<TapPart>& parts;       ///< of the first wrong tap
  const std::vector<TapPart>& norm_parts;  ///< of the other layers' attention norms, if the tap is one
};

Cause diagnose(const DiagnosisInput& input);

}  // namespace shardproof
