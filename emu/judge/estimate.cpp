#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/model/taps.h"
#include "emu/model/tensors.h"
#include "emu/plan/layout.h"
#include "emu/plan/schedule.h"
#include "emu/run/activations.h"
#include "emu/run/dry_run.h"
#include "emu/run/kv_cache.h"

namespace shardproof {
namespace {

/// In `exact` the keys and values of every step of a ring are kept until the largest score is known.
double ring_elements(const RankTrace& trace) {
  std::map<std::pair<int, int>, double> of_layer;
  double most = 0;
  for (const OpRecord& record : trace.ops) {
    if (record.op != Op::attention_ring_receive) continue;
    double& sum = of_layer[{record.microbatch, record.layer}];
    sum += static_cast<double>(record.received);
    most = std::max(most, sum);
  }
  return most;
}

/// What all ranks hold at once at the most: ranks of all stages work at the same time, each on a microbatch of its own.
double alive_elements(const Plan& plan, ops::Format format) {
  const Mesh mesh(plan.parallel);
  std::vector<double> alive;
  const std::vector<int> list_of_rank =
      fold_dry_run(plan, format, DryPass::prefill, StatedRouting::of(plan), [&](int rank, const auto& trace) {
        alive.push_back(activations_of(*trace, plan.model, make_layout(plan.model, mesh, rank)).alive +
                        ring_elements(*trace));
      });
  double sum = 0;
  for (const int list : list_of_rank) sum += alive[static_cast<std::size_t>(list)];
  return sum;
}

/// The reference is a world of one that takes the batch at once; it is gone when the ranks run.
double working_elements(const Plan& plan, ops::Format format) {
  Plan unsharded = plan;
  unsharded.parallel = {};
  unsharded.workload.microbatches = 1;
  return std::max(alive_elements(plan, format), alive_elements(unsharded, format));
}

/// The caches of all ranks; of latent attention also keys and values that a pass makes of all that is cached.
double cache_elements(const Plan& plan) {
  if (!plan.workload.serving) return 0;
  const Serving& serving = *plan.workload.serving;
  const Mesh mesh(plan.parallel);
  const std::vector<ReplicaSchedule> schedule = make_schedule(plan.parallel, plan.workload);
  double elements = 0;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const Layout layout = make_layout(plan.model, mesh, rank);
    const std::int64_t blocks =
        kv_blocks_of(serving, schedule[static_cast<std::size_t>(layout.at.dp)], plan.parallel.dcp);
    const double tokens = static_cast<double>(blocks * serving.kv_block_size);
    const double all_tokens = tokens * plan.parallel.dcp;
    double widest = 0;
    for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
      const CacheWidths widths = cache_widths(layout, plan.model, static_cast<int>(layer));
      elements += tokens * static_cast<double>(widths.keys + widths.values);
      const AttentionSpec& spec = plan.model.layers[layer].attention;
      // What a rank of dcp attends to, one sequence after another.
      if (!spec.latent() && plan.parallel.dcp > 1) {
        widest = std::max(widest, tokens * static_cast<double>(widths.keys + widths.values));
      }
      if (!spec.latent()) continue;
      const double made = static_cast<double>(layout.layer(plan.model, layer).heads.count) *
                          static_cast<double>(2 * spec.head_dim + 2 * spec.value_dim());
      widest =
          std::max(widest, all_tokens * (static_cast<double>(widths.keys) * (plan.parallel.dcp > 1 ? 2 : 1) + made));
    }
    elements += widest;
  }
  return elements;
}

double tap_elements(const Plan& plan, const TapId& tap) {
  return static_cast<double>(tap_rows(plan.model, tap, plan.workload.tokens())) *
         static_cast<double>(tap_width(plan.model, tap));
}

/// Of the algebra: expected taps in float64, and a byte an element for the parts that have arrived.
double expected_bytes(const Plan& plan) {
  double elements = 0;
  for (const TapId& tap : all_taps(plan.model)) elements += tap_elements(plan, tap);
  return elements * (8 + 1);
}

/// Of the rounding: the run's own taps in its scalar, at most all of them, a byte an element for what has arrived, and
/// what two rules compute at once, in float64: their inputs and a result.
double kept_bytes(const Plan& plan, ops::Format format) {
  double elements = 0, largest = 0;
  for (const TapId& tap : all_taps(plan.model, tap_parts(plan))) {
    elements += tap_elements(plan, tap);
    largest = std::max(largest, tap_elements(plan, tap));
  }
  // What a ring's steps gave is merged from two tensors for each.
  const int tensors = std::max(3, 2 * tap_parts(plan).keys + 1);
  return elements * ((ops::computes_in_double(format) ? 8 : 4) + 1) + 2.0 * tensors * 8 * largest;
}

}  // namespace

double estimated_bytes(const Plan& plan, ops::Format format) {
  const ModelConfig& model = plan.model;
  constexpr double kScalar = 8;  // of exact, which runs whatever the format
  // Ranks that hold replicas share them, so the weights count once; slices of kv heads overlap nowhere.
  double weights = 0;
  double largest_weight = 0;
  for (const TensorCount& count : tensor_counts(model)) {
    weights += static_cast<double>(count.elements());
    largest_weight = std::max(largest_weight, static_cast<double>(count.rows) * static_cast<double>(count.cols));
  }

  const double verdicts = format == ops::Format::exact ? 1 : 2;
  const double taps = expected_bytes(plan) + (format == ops::Format::exact ? 0 : kept_bytes(plan, format));
  // The ranks' weights come and go, but for what is kept and what is in use; each reference holds a whole tensor.
  const double held =
      std::min(weights * kScalar, static_cast<double>(kWeightBytesKept)) + largest_weight * 8 * 3 * verdicts;
  // Every rank has some bookkeeping.
  const double bookkeeping = 64e6 + 200e3 * plan.world();
  return held + taps + (working_elements(plan, format) + cache_elements(plan)) * kScalar + bookkeeping;
}

}  // namespace shardproof
