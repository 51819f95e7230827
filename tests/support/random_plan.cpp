#include "tests/support/random_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

#include "emu/plan/layout.h"

namespace shardproof::testing {
namespace {

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : engine_(seed) {}
  /// Uniform in low..high.
  int between(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  int one_of(const std::vector<int>& values) {
    return values[static_cast<std::size_t>(between(0, static_cast<int>(values.size()) - 1))];
  }
  bool chance(int percent) { return between(1, 100) <= percent; }

 private:
  std::mt19937_64 engine_;
};

std::vector<int> divisors(int value) {
  std::vector<int> result;
  for (int d = 1; d <= value; ++d) {
    if (value % d == 0) result.push_back(d);
  }
  return result;
}

Parallel draw_parallel(Draw& draw, int max_world) {
  Parallel p;
  do {
    p.tp = draw.one_of({1, 1, 2, 2, 3, 4, 4, 6, 8});
    p.dp = draw.one_of({1, 1, 2, 2, 3, 4, 5, 8});
    p.pp = draw.one_of({1, 1, 2, 2, 3, 4});
  } while (p.world() > max_world);
  const int stage = p.tp * p.dp;
  p.etp = draw.one_of(divisors(stage));
  p.ep = draw.one_of(divisors(stage / p.etp));
  p.edp = stage / (p.etp * p.ep);
  p.sp = p.tp > 1 && draw.chance(50);
  return p;
}

ModelConfig draw_model(Draw& draw, const Parallel& p) {
  ModelConfig m;
  m.layers.resize(p.pp + draw.between(0, 2));
  m.layers.kind(0).attention.heads = p.tp * draw.between(1, 3);
  // Key/value heads divide the query heads, and tp and they divide one another.
  std::vector<int> kv;
  for (const int candidate : divisors(static_cast<int>(m.layers[0].attention.heads))) {
    if (candidate % p.tp == 0 || p.tp % candidate == 0) kv.push_back(candidate);
  }
  m.layers.kind(0).attention.kv_heads = draw.one_of(kv);
  m.layers.kind(0).attention.head_dim = 2 * draw.between(1, 4);
  m.hidden_size = draw.between(4, 24);
  m.layers.kind(0).feed_forward.intermediate_size = p.etp * draw.between(1, 6);
  m.layers.kind(0).feed_forward.num_experts = p.ep * draw.between(1, 3);
  m.layers.kind(0).feed_forward.top_k = draw.between(1, static_cast<int>(m.layers[0].feed_forward.num_experts));
  m.vocab_size = p.tp + draw.between(8, 60);
  m.layers.kind(0).feed_forward.norm_topk_prob = draw.chance(70);
  m.tie_word_embeddings = draw.chance(30);
  m.layers.kind(0).attention.rope.theta = draw.one_of({10000, 1000000});
  return m;
}

/// A layer for each stage, and the others anywhere.
std::vector<std::int64_t> draw_stages(Draw& draw, const Plan& plan) {
  std::vector<std::int64_t> stages(static_cast<std::size_t>(plan.parallel.pp), 1);
  for (std::int64_t layer = plan.parallel.pp; layer < plan.model.layers.size(); ++layer) {
    ++stages[static_cast<std::size_t>(draw.between(0, plan.parallel.pp - 1))];
  }
  return stages;
}

}  // namespace

std::uint64_t property_seed() {
  const char* given = std::getenv("SHARDPROOF_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 20240611;
}

Plan random_plan(std::uint64_t seed, int max_world) {
  Draw draw(seed);
  Plan plan;
  plan.name = fmt::format("random {}", seed);
  plan.parallel = draw_parallel(draw, max_world);
  plan.model = draw_model(draw, plan.parallel);
  const int batch = draw.between(1, 6);
  for (int s = 0; s < batch; ++s) plan.workload.lengths.push_back(draw.between(1, 9));
  // A replica never has more microbatches than sequences; ranks with none still take part in each.
  plan.workload.microbatches = draw.between(1, std::min(3, (batch + plan.parallel.dp - 1) / plan.parallel.dp));
  plan.workload.seed = seed;
  // Experts that do not divide by ep, and stages of any length.
  if (draw.chance(30)) plan.model.layers.kind(0).feed_forward.num_experts += draw.between(0, plan.parallel.ep - 1);
  if (plan.parallel.pp > 1 && draw.chance(30)) plan.parallel.layers_per_stage = draw_stages(draw, plan);
  if (draw.chance(20)) plan.parallel.make_vocab_size_divisible_by = draw.between(1, 8);
  return plan;
}

std::string describe(const Plan& plan) {
  const Parallel& p = plan.parallel;
  const ModelConfig& m = plan.model;
  return fmt::format(
      "{}: tp{} dp{} pp{} ({}) sp{} etp{} ep{} edp{}; layers {} heads {} kv {} head_dim {} hidden {} width {} experts "
      "{} "
      "top {} "
      "vocabulary {} (padded to {}) normalise {} tied {}; lengths {} microbatches {}",
      plan.name, p.tp, p.dp, p.pp, fmt::join(p.layers_per_stage, ","), p.sp, p.etp, p.ep, p.edp, m.layers.size(),
      m.layers[0].attention.heads, m.layers[0].attention.kv_heads, m.layers[0].attention.head_dim, m.hidden_size,
      m.layers[0].feed_forward.intermediate_size, m.layers[0].feed_forward.num_experts, m.layers[0].feed_forward.top_k,
      m.vocab_size, padded_vocabulary(m, p), m.layers[0].feed_forward.norm_topk_prob, m.tie_word_embeddings,
      fmt::join(plan.workload.lengths, ","), plan.workload.microbatches);
}

}  // namespace shardproof::testing
