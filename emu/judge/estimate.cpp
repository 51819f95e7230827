#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "collectives/executor.h"
#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/model/taps.h"
#include "emu/model/tensors.h"
#include "emu/plan/latent_form.h"
#include "emu/plan/layout.h"
#include "emu/plan/schedule.h"
#include "emu/run/activations.h"
#include "emu/run/dry_run.h"
#include "emu/run/kv_cache.h"
#include "emu/weights/store.h"

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

/// What all ranks hold at once at the most: as many stages work at the same time as there are microbatches for them.
double alive_elements(const Plan& plan, ops::Format format) {
  const Mesh mesh(plan.parallel);
  std::vector<double> alive;
  const std::vector<int> list_of_rank =
      fold_dry_run(plan, format, DryPass::prefill, StatedRouting::of(plan), [&](int rank, const auto& trace) {
        alive.push_back(activations_of(*trace, plan.model, make_layout(plan.model, mesh, rank)).alive +
                        ring_elements(*trace));
      });
  double sum = 0, most = 0;
  for (const int list : list_of_rank) {
    sum += alive[static_cast<std::size_t>(list)];
    most = std::max(most, alive[static_cast<std::size_t>(list)]);
  }
  const double busy_stages = static_cast<double>(std::min<std::int64_t>(plan.workload.microbatches, plan.parallel.pp));
  return plan.workload.serving ? sum : std::min(sum, most * busy_stages * mesh.world() / plan.parallel.pp);
}

/// The reference is a world of one that takes the batch at once; it is gone when the ranks run.
double working_elements(const Plan& plan, ops::Format format) {
  Plan unsharded = plan;
  unsharded.parallel = {};
  unsharded.workload.microbatches = 1;
  return std::max(alive_elements(plan, format), alive_elements(unsharded, format));
}

/// Tokens that latent attention has before it at once in a step of a replica at the most: of sequences that share
/// blocks of the cache, each its own.
struct SeenAtOnce {
  double plain = 0;  ///< by tokens in the plain form, which have keys and values made of them
  double absorbed = 0;
};

SeenAtOnce seen_at_once(const Plan& plan, const ReplicaSchedule& schedule) {
  const std::vector<std::int64_t> from = absorbed_from(plan.parallel, plan.workload);
  SeenAtOnce most;
  for (const std::vector<Chunk>& step : schedule) {
    SeenAtOnce seen;
    for (const Chunk& chunk : step) {
      const std::int64_t first = from[static_cast<std::size_t>(chunk.sequence)];
      if (chunk.begin < first) seen.plain += static_cast<double>(std::min(chunk.end(), first));
      if (chunk.end() > first) seen.absorbed += static_cast<double>(chunk.end());
    }
    most = {std::max(most.plain, seen.plain), std::max(most.absorbed, seen.absorbed)};
  }
  return most;
}

/// Of a rank's layer with latent attention: latents that a pass reads, over dcp gathers and puts in order, and each
/// head's keys and values from there, before and after they are apart; or, absorbed, those that the rank of dcp keeps.
double latent_elements(const Plan& plan, const AttentionSpec& spec, std::int64_t heads, const SeenAtOnce& seen) {
  const double gathered = plan.parallel.dcp > 1 ? 2 : 0;
  const double width = static_cast<double>(cached_elements(spec, 1));
  const double made = static_cast<double>(heads * (2 * spec.head_dim + 2 * spec.value_dim()));
  const double kept = plan.parallel.dcp > 1 ? seen.absorbed * width / plan.parallel.dcp : 0;
  return std::max(seen.plain * (width * std::max(gathered, 1.0) + made), kept);
}

/// The caches of all ranks, and what a pass makes of them.
double cache_elements(const Plan& plan) {
  if (!plan.workload.serving) return 0;
  const Serving& serving = *plan.workload.serving;
  const Mesh mesh(plan.parallel);
  const std::vector<ReplicaSchedule> schedule = make_schedule(plan.parallel, plan.workload);
  std::vector<SeenAtOnce> seen;
  for (const ReplicaSchedule& replica : schedule) seen.push_back(seen_at_once(plan, replica));
  double elements = 0;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const Layout layout = make_layout(plan.model, mesh, rank);
    const auto replica = static_cast<std::size_t>(layout.at.dp);
    const std::int64_t blocks = kv_blocks_of(serving, schedule[replica], plan.parallel.dcp);
    const double tokens = static_cast<double>(blocks * serving.kv_block_size);
    double widest = 0;
    for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
      const CacheWidths widths = cache_widths(layout, plan.model, static_cast<int>(layer));
      elements += tokens * static_cast<double>(widths.keys + widths.values);
      const AttentionSpec& spec = plan.model.layers[layer].attention;
      if (spec.latent()) {
        const std::int64_t heads = layout.layer(plan.model, layer).heads.count;
        widest = std::max(widest, latent_elements(plan, spec, heads, seen[replica]));
      } else if (plan.parallel.dcp > 1) {
        // What a rank of dcp attends to, one sequence after another.
        widest = std::max(widest, tokens * static_cast<double>(widths.keys + widths.values));
      }
    }
    elements += widest;
  }
  return elements;
}

double tap_elements(const Plan& plan, const TapId& tap) {
  return static_cast<double>(tap_rows(plan.model, tap, plan.workload.tokens())) *
         static_cast<double>(tap_width(plan.model, tap));
}

/// Of the algebra: expected taps in float64, and a byte an element for the parts that have arrived; of sums over ranks
/// of tp and etp, which are added when the run is over, every rank's part.
double expected_bytes(const Plan& plan) {
  double elements = 0;
  for (const TapId& tap : all_taps(plan.model)) elements += tap_elements(plan, tap);
  double parts = 0;
  for (const int ranks : {plan.parallel.tp, plan.parallel.etp}) parts += ranks > 1 ? ranks : 0;
  const double stream = static_cast<double>(plan.workload.tokens()) * static_cast<double>(plan.model.hidden_size);
  return elements * (8 + 1) + parts * stream * static_cast<double>(plan.model.layers.size()) * 8;
}

/// Blocks that the ranks of all stages hand in, each a tap's of its own layer, at every step and microbatch.
double block_count(const Plan& plan) {
  const Parallel& p = plan.parallel;
  double steps = 0;  // of all replicas
  for (const ReplicaSchedule& replica : make_schedule(p, plan.workload)) steps += static_cast<double>(replica.size());
  const double taps = static_cast<double>(all_taps(plan.model).size()) / p.pp;
  return taps * steps * static_cast<double>(plan.workload.microbatches) * Mesh(p).world() / p.dp;
}

/// Of the rounding: the run's own taps in its scalar, a byte an element for what has arrived, and what a rule computes
/// at once, in float64. A tap is dropped when all that is computed from it was judged: one rank goes through the layers
/// by itself, as the stages of one microbatch do one after the other, and half of all taps is never there at once, nor
/// more than some hundred layers' (20 to 60 were, of 256 and of 2,048); many ranks go through them together.
double kept_bytes(const Plan& plan, ops::Format format) {
  double elements = 0, largest = 0;
  for (const TapId& tap : all_taps(plan.model, tap_parts(plan))) {
    elements += tap_elements(plan, tap);
    largest = std::max(largest, tap_elements(plan, tap));
  }
  const int world = Mesh(plan.parallel).world();
  constexpr double kMostLayers = 512;
  const double one_by_one = std::min(0.5, kMostLayers / static_cast<double>(plan.model.layers.size()));
  const std::int64_t together =
      world / plan.parallel.pp * std::min<std::int64_t>(plan.parallel.pp, plan.workload.microbatches);
  const double share = together <= 2 ? one_by_one : world <= 16 ? 0.5 : 1;
  // What a ring's steps gave is merged at once.
  const double tensors = std::max(1, tap_parts(plan).keys);
  return share * elements * ((ops::computes_in_double(format) ? 8 : 4) + 1) + tensors * 8 * largest;
}

/// Weights that a rank has in memory at once: gate, up and down of the widest expert or MLP, what makes keys and values
/// of latents, or a block of another's rows.
double widest_elements(const Plan& plan, double block) {
  const Parallel& p = plan.parallel;
  double widest = block;
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const FeedForwardSpec& spec = layer.feed_forward;
    const double expert = spec.dense() ? 0 : static_cast<double>(spec.intermediate_size) / p.etp;
    const double width = std::max(expert, static_cast<double>(spec.mlp_size()) / p.tp);
    const AttentionSpec& attention = layer.attention;
    const std::int64_t of_head = attention.head_dim - attention.rope.dim + attention.value_dim();
    const double of_latents =
        attention.latent() ? static_cast<double>(attention.heads * of_head * attention.kv_lora_rank) / p.tp : 0;
    widest = std::max({widest, 3 * width * static_cast<double>(plan.model.hidden_size), of_latents});
  }
  return widest;
}

}  // namespace

double estimated_bytes(const Plan& plan, ops::Format format, int threads) {
  const ModelConfig& model = plan.model;
  constexpr double kScalar = 8;  // of exact, which runs whatever the format
  // Ranks that hold replicas share them, so the weights count once; slices of kv heads overlap nowhere.
  double weights = 0, block = 0;  // a block: of the rows of one
  for (const TensorCount& count : tensor_counts(model)) {
    weights += static_cast<double>(count.elements());
    block = std::max(block, static_cast<double>(count.rows) * static_cast<double>(count.cols));
  }
  block = std::min(block, static_cast<double>(kElementsAtOnce));

  // The constants are those under which tests/tools/estimate_nightly.cpp holds.
  constexpr double kProcess = 24e6, kOfTap = 8e3, kOfRank = 6e3, kOfBlock = 450;
  constexpr double kFragments = 1.12;        // of the heap, where large blocks come and go
  constexpr double kWeightFragments = 1.25;  // more of it, where weights of all sizes are dropped and made again
  const bool both = format != ops::Format::exact;
  const double tap_count = static_cast<double>(all_taps(model).size());
  const double alive = (working_elements(plan, format) + cache_elements(plan)) * kScalar;
  const double bookkeeping = kOfTap * tap_count + kOfRank * plan.world() + kOfBlock * block_count(plan);
  double heap = expected_bytes(plan) + alive + bookkeeping;
  double kept_weights = std::min(weights * kScalar, static_cast<double>(kWeightBytesKept)) * kWeightFragments;
  if (both) {
    // Its run goes on while the reference of the algebra is made.
    const double scalar = ops::computes_in_double(format) ? 8 : 4;
    heap += kept_bytes(plan, format) + alive / kScalar * scalar + bookkeeping;
    kept_weights += std::min(weights * scalar, static_cast<double>(kWeightBytesKept));
  }
  // Beyond what is kept, what ranks that run at once have each in memory is made again for each of its uses.
  if (threads == 0) threads = available_threads();
  const double at_once = static_cast<double>(std::min<std::int64_t>(plan.world(), threads));
  const auto made_again = [&](double scalar) {
    return std::max(0.0, at_once * widest_elements(plan, block) * scalar - static_cast<double>(kWeightBytesKept));
  };
  // The run of the rounding is rarely in as many while that of the algebra is; in float64 it was measured to take no
  // more than in float.
  constexpr double kBeside = 0.6;
  const double in_use = made_again(kScalar) + (both ? kBeside * made_again(4) : 0);
  // The reference has one block of its own.
  return kProcess + kFragments * (heap + kept_weights) + block * kScalar + in_use;
}

}  // namespace shardproof
