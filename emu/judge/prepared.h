// What verifying a plan needs that the run under test cannot change: computed once, shared by many runs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "emu/judge/exact_use.h"
#include "emu/judge/expected.h"
#include "emu/model/taps.h"
#include "emu/plan/batch.h"
#include "emu/plan/latent_form.h"
#include "emu/plan/plan.h"
#include "emu/weights/store.h"
#include "ops/format.h"

namespace shardproof {

/// How much of the weights stays in memory from use to use. Making a weight again costs less than the first touch of
/// new memory for it, as long as the ranks that share a slice come to it one soon after the other.
inline constexpr std::int64_t kWeightBytesKept = std::int64_t{128} << 20;

/// The partial sums that a run under these degrees has, for all_taps().
inline TapPartCounts tap_parts(const Plan& plan) {
  const Parallel& parallel = plan.parallel;
  return {.tp = parallel.tp,
          .etp = parallel.etp,
          .ep = parallel.sums_over_ep() ? parallel.ep : 0,
          .keys = parallel.key_parts(plan.model.layers[0].attention.latent()),
          .latents = parallel.latent_parts(),
          .absorbed = has_absorbed(plan)};
}

/// What a run is held to.
enum class HeldTo {
  whole_model,  ///< the taps of the unsharded float64 reference, from end to end
  own_inputs,  ///< shapes alone: each tap is held to its op on the inputs that the run itself had (rounding/op_rules.h)
};
/// What decides a verdict in that format.
constexpr HeldTo held_to(ops::Format format) {
  return format == ops::Format::exact ? HeldTo::whole_model : HeldTo::own_inputs;
}

/// The expected taps of one plan, its tokens and weights in one format.
struct PreparedReference {
  Batch batch;
  ops::Format format;
  std::unique_ptr<const WeightSource> owned;  ///< the generator, unless a source was given
  const WeightSource* weights = nullptr;
  /// The weights that runs have loaded, up to kWeightBytesKept; T is what the format computes in.
  std::unique_ptr<WeightStore<double>> slices;
  std::unique_ptr<WeightStore<float>> float_slices;
  template <class T>
  WeightStore<T>& store() const {
    if constexpr (std::is_same_v<T, double>) {
      return *slices;
    } else {
      return *float_slices;
    }
  }
  HeldTo held_to = HeldTo::whole_model;
  ExpectedTaps expected;
  std::vector<SumBits> sums;  ///< in `exact`: every sum of the reference, and the bits that it needs
  double seconds = 0;         ///< that the reference took
};

/// What verify() holds a run in that format to. `weights` outlives the result; null: GeneratedWeights of the workload's
/// seed. `completed` is called with the name of each tap of the reference.
PreparedReference prepare_reference(const Plan& plan, ops::Format format, const WeightSource* weights = nullptr,
                                    const std::function<void(const TapId&)>& completed = {});
/// The whole model in any format.
PreparedReference prepare_whole_model(const Plan& plan, ops::Format format, const WeightSource* weights = nullptr,
                                      const std::function<void(const TapId&)>& completed = {});

}  // namespace shardproof
