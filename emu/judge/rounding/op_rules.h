// What each op should make of the inputs that a run had, and how far its rounding may take it from there.
//
// One rule for each kind of tap: from the run's own earlier taps and the weights as the format holds them, the result
// in float64 and a bound on the error of every element (bounds.h). The mathematics is the reference's
// (emu/reference/reference.h); the rounding is that of the ops, stated with each rule:
//   product        fl(x W^T), then stored; partial sums stored where they are sent
//   rotation       of a stored product: each of two products and their sum, the cosine and sine rounded; stored
//   norm           sum of squares, mean, + eps, root, inverse, two products; stored
//   attention      scores of the scaled query, exponentials from a running maximum over tiles of keys, sums, quotient;
//                  stored
//   part           of attention, to the keys of one rank of a ring over cp: the same with the part's own largest score,
//                  stored; the log of its sum and the largest score added, not stored
//   merge          of these: exponentials of the differences to the largest of the logs, products and sums, quotient;
//                  stored
//   router         the k largest, ties to the lower expert: no rounding; exponentials, sum, quotient; stored
//   activation     exponential, + 1, quotient, product; stored
//   reduction      in the order, wire and accumulation formats of its algorithm; stored
//   combination    products and sums in order of the choices; stored. Of the experts of one rank of ep, the same of the
//                  choices that it serves
//   residual       one sum; stored
//   absorbed       queries of latents: still products a latent's element (latent_forms.cpp), and what turns, as it is;
//                  attention to latents: attention's rule, of keys of rank + rope dim elements; the context: rank
//                  products
// A profile other than `ours` (bounds.h) adds its own roundings. Where an input was not handed in but computed from
// what was, its errors are carried through: by the weights of a product, the slope of an activation, and so on.
#pragma once

#include <optional>
#include <vector>

#include "collectives/options.h"
#include "emu/judge/expected.h"
#include "emu/judge/rounding/bounds.h"
#include "emu/judge/rounding/comparison.h"
#include "emu/judge/rounding/run_tensors.h"
#include "emu/plan/batch.h"
#include "emu/plan/deployment.h"
#include "emu/plan/plan.h"
#include "emu/weights/store.h"

namespace shardproof::rounding {

/// What the rules of one run share.
struct Rules {
  /// Everything that is referred to outlives the rules.
  Rules(const Plan& plan, ops::Format format, const WeightSource& weights, const Batch& batch, const ExpectedTaps& taps,
        const ReduceOptions& reduction, RoundingProfile profile = RoundingProfile::ours);

  const Plan& plan;
  const ModelConfig& model;
  ops::Format format;
  Profile profile;
  const WeightSource& weights;
  const Batch& batch;
  const ExpectedTaps& taps;  ///< their shapes
  Deployment deployment;
  ReduceOptions reduce_over_tp;  ///< as the program calls them
  ReduceOptions reduce_over_etp;
  ReduceOptions reduce_over_ep;
  ReduceOptions scalars_over_tp;
  ReductionPath path_over_tp;
  ReductionPath path_over_etp;
  ReductionPath path_over_ep;
  ReductionPath path_of_scalars;
  std::vector<std::int64_t> positions;  ///< of each token in its sequence
  /// Of each token, where attention is made of parts (Parallel::key_parts, latent_parts): which one its key is in.
  std::vector<int> part_of;
  /// Of each token, whether latent attention computes it in the absorbed form; empty: none (emu/plan/latent_form.h).
  std::vector<bool> absorbed;
};

/// The taps that a tap is computed from.
std::vector<TapId> inputs_of(const Plan& plan, const TapId& tap);

/// Holds a complete tensor of the run to its rule; its inputs are complete too.
Judged judge_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap);

/// Whether a tap that a run did not hand in can be computed from its inputs within bounds: any but a router's logits,
/// and, where these inputs are computed themselves, the residual stream, so that no bound spans more than a layer.
bool derivable(TapKind kind, bool inputs_are_own);
/// What the op gives on the inputs, which are all there, with the bounds of its errors; none for a router's choice that
/// is too close to call.
std::optional<RunTensor> derive_tap(const Rules& rules, const RunTensors& tensors, const TapId& tap);

}  // namespace shardproof::rounding
