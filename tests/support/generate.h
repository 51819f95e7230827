// Random valid plans for property tests.
#pragma once

#include <cstdint>
#include <random>

#include "emu/plan/plan.h"

namespace shardproof::testing {

/// A plan that validate() accepts, of at most `max_world` ranks: every degree, folding, grouped-query attention with
/// fewer key-value heads than tp, uneven layers and batches, replicas without a sequence.
inline Plan random_valid_plan(std::mt19937_64& random, int max_world) {
  const auto pick = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  Plan plan;
  Parallel& p = plan.parallel;
  do {
    p.tp = static_cast<int>(1LL << pick(0, 3));
    p.cp = pick(0, 5) == 0 ? 2 : 1;
    p.dp = static_cast<int>(pick(1, 6));
    p.pp = static_cast<int>(pick(1, 4));
  } while (p.world() > max_world);
  const int stage = p.tp * p.cp * p.dp;
  do {
    p.ep = static_cast<int>(pick(1, stage));
    p.etp = static_cast<int>(pick(1, 4));
  } while (stage % (p.ep * p.etp) != 0);
  p.edp = stage / (p.ep * p.etp);
  p.sp = p.tp > 1 && pick(0, 1) == 1;

  ModelConfig& model = plan.model;
  model.layers.resize(p.pp + pick(0, 3));
  model.layers.kind(0).attention.heads = p.tp * pick(1, 3);
  do {
    model.layers.kind(0).attention.kv_heads = pick(1, model.layers[0].attention.heads);
  } while (model.layers[0].attention.heads % model.layers[0].attention.kv_heads != 0 ||
           (model.layers[0].attention.kv_heads % p.tp != 0 && p.tp % model.layers[0].attention.kv_heads != 0));
  model.layers.kind(0).attention.head_dim = 2 * pick(2, 8);
  model.hidden_size = pick(8, 96);
  model.layers.kind(0).feed_forward.num_experts = p.ep * pick(1, 5);
  model.layers.kind(0).feed_forward.top_k = pick(1, model.layers[0].feed_forward.num_experts);
  model.layers.kind(0).feed_forward.intermediate_size = p.etp * pick(4, 24);
  model.vocab_size = pick(p.tp + 8, 500);
  model.tie_word_embeddings = pick(0, 3) == 0;

  const std::int64_t batch = pick(1, 3 * p.dp);
  for (std::int64_t i = 0; i < batch; ++i) plan.workload.lengths.push_back(pick(1, 40));
  plan.workload.microbatches = pick(1, (batch + p.dp - 1) / p.dp);
  plan.workload.seed = random() >> 1;
  plan.name = "generated";
  return plan;
}

}  // namespace shardproof::testing
