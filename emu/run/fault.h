// Where a fault may be injected into a run: a few narrow seams, of which the program knows nothing but the call.
//
// Used to measure what the verifier catches (emu/mutate/mutation.h). A run without an injector pays a test of a
// pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "collectives/call_hook.h"
#include "emu/model/tensors.h"
#include "emu/plan/deployment.h"
#include "emu/run/cluster.h"
#include "emu/run/kv_cache.h"
#include "emu/run/op.h"
#include "ops/matrix.h"

namespace shardproof {

/// Where in the program a rank stands.
struct FaultSite {
  int layer = -1;
  std::int64_t microbatch = 0;
};

/// What a result was computed from: a product's x [rows, k] and w [columns, k]; a combination's outputs [slots,
/// columns], weights [rows, top_k] and, for each of these, the row of outputs. Of any other op, nothing.
struct Operands {
  ops::MatrixView<const float> x = {};
  ops::MatrixView<const float> w = {};
  ops::MatrixView<const std::int64_t> positions = {};
};

/// Of a router's rules (ops::RouteOptions) those that code has been seen to have otherwise.
struct RouterRule {
  double closed_score = 0;
  bool weighs_bias = false;
};

/// What a rank does in the absorbed form of latent attention.
struct AbsorbedForm {
  std::int64_t keys_of = 0;    ///< each of its heads absorbs the keys of the head so many further on, round its last
  std::int64_t values_of = 0;  ///< and makes the values of that one
  double scale = 0;            ///< of the scores
};

/// Every function may change what it is given; the defaults change nothing. Called for different ranks at once.
class FaultInjector {
 public:
  virtual ~FaultInjector() = default;

  /// Before the run: what each rank believes it holds. Indexed by rank.
  virtual void edit_layouts(std::vector<Layout>& /*layouts*/) {}
  /// Before the run, after the layouts, whose layers it follows: what each rank does, in which order.
  virtual void edit_timetable(Timetable& /*timetable*/) {}
  /// The slice of a weight that a rank loads; the counts must stay.
  virtual void edit_slice(const Rank& /*rank*/, WeightSpec& /*spec*/, Range& /*rows*/, Range& /*cols*/) {}
  /// Before the run: what a rank believes of the model's kinds of layer. Of each the windows, the rotary embedding and
  /// other factors; every shape must stay.
  virtual void edit_model(const Rank& /*rank*/, ModelConfig& /*model*/) {}
  /// What a rank believes of its tokens in a microbatch.
  virtual void edit_microbatch(const Rank& /*rank*/, std::int64_t /*microbatch*/, RankTokens& /*tokens*/) {}
  /// What a rank believes of its cache in a microbatch of a plan that serves requests.
  virtual void edit_cache(const Rank& /*rank*/, std::int64_t /*microbatch*/, CachedPass& /*pass*/) {}
  /// How a rank's router chooses and weighs.
  virtual void edit_router(const Rank& /*rank*/, const FaultSite& /*site*/, RouterRule& /*rule*/) {}
  /// After the choice of experts: logits [tokens, experts], ids and weights [tokens, top_k], before the dispatch; not
  /// what is tapped.
  virtual void edit_routing(const Rank& /*rank*/, const FaultSite& /*site*/, ops::MatrixView<const double> /*logits*/,
                            ops::MatrixView<std::int32_t> /*ids*/, ops::MatrixView<double> /*weights*/) {}
  /// After the choice of replicas, of a plan that has some: ids and the physical experts for them, [tokens, top_k].
  virtual void edit_replicas(const Rank& /*rank*/, const FaultSite& /*site*/,
                             ops::MatrixView<const std::int32_t> /*ids*/, ops::MatrixView<std::int32_t> /*physical*/) {}
  /// In the formats that compute in float: what any computation but the router's choice and the dispatch's moves made,
  /// before it is tapped; a product before it is stored, and one with a weight of more than kElementsAtOnce in parts of
  /// its outputs.
  virtual void edit_result(const Rank& /*rank*/, Op /*op*/, const FaultSite& /*site*/, const Operands& /*operands*/,
                           ops::MatrixView<float> /*result*/) {}
  /// The same in `exact` and fp64.
  virtual void edit_double_result(const Rank& /*rank*/, Op /*op*/, const FaultSite& /*site*/,
                                  ops::MatrixView<double> /*result*/) {}
  /// Of tokens in the absorbed form, before what they are computed with is read.
  virtual void edit_absorbed(const Rank& /*rank*/, const FaultSite& /*site*/, AbsorbedForm& /*form*/) {}
  /// Attention of a prompt's later chunk, of a sequence of the pass: true, and what its own tokens give and what those
  /// cached before it give are averaged, where the chunk's keys are one whole. Asked of plain tokens with a past, in
  /// layers without window and sinks, where the rank has the whole cache.
  virtual bool averages_past(const Rank& /*rank*/, const FaultSite& /*site*/, std::size_t /*sequence*/) {
    return false;
  }
  /// Attention in a ring over cp, before the parts are merged: what the keys of one rank of cp make of the rank's
  /// queries. In the float formats its context and the log of its sum of exponentials (attention_parts.h); in `exact`
  /// numerators and denominators. Not what is tapped.
  virtual void edit_part(const Rank& /*rank*/, const FaultSite& /*site*/, int /*keys_of*/,
                         ops::MatrixView<float> /*context*/, ops::MatrixView<float> /*lse*/) {}
  virtual void edit_double_part(const Rank& /*rank*/, const FaultSite& /*site*/, int /*keys_of*/,
                                ops::MatrixView<double> /*context*/, ops::MatrixView<double> /*lse*/) {}
  /// Before a call that is under way is waited for: false, and what it brings is read first.
  virtual bool awaits_in_time(const Rank& /*rank*/, Op /*op*/, const FaultSite& /*site*/) { return true; }
  /// The collectives: see CallHook. A call's tag tells its op (op.h), layer and microbatch.
  virtual bool before_call(const Rank& /*rank*/, internal::Call& /*call*/) noexcept { return true; }
  virtual void after_call(const Rank& /*rank*/, internal::Call& /*call*/) noexcept {}
};

/// What the ranks of a faulty run believe of the deployment.
inline void edit_deployment(FaultInjector& fault, Deployment& deployment) {
  fault.edit_layouts(deployment.layouts);
  deployment.timetable =
      forward_timetable(deployment.layouts, deployment.tokens.microbatches(), deployment.tokens.microbatches_of_step());
  fault.edit_timetable(deployment.timetable);
}

}  // namespace shardproof
