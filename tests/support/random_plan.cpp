#include "tests/support/random_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <utility>
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
    p.cp = draw.one_of({1, 1, 1, 1, 2, 2, 3, 4});
    p.dp = draw.one_of({1, 1, 2, 2, 3, 4, 5, 8});
    p.pp = draw.one_of({1, 1, 2, 2, 3, 4});
  } while (p.world() > max_world);
  p.cp_comm = static_cast<CpComm>(std::min(3, draw.between(0, p.cp == 4 ? 5 : 2)));
  if (p.cp_comm == CpComm::a2a_p2p) p.cp_a2a = 2;
  const int stage = p.tp * p.cp * p.dp;
  p.etp = draw.one_of(divisors(stage));
  p.ep = draw.one_of(divisors(stage / p.etp));
  p.edp = stage / (p.etp * p.ep);
  p.sp = p.tp > 1 && draw.chance(50);
  return p;
}

/// A way that the degrees allow; where none is sent, with experts that lie inside tp.
void draw_dispatch(Draw& draw, Parallel& p) {
  const bool inside_tp = !p.sp && p.tp % (p.ep * p.etp) == 0;
  p.dispatch =
      draw.chance(50) ? DispatchComm::all_to_all : static_cast<DispatchComm>(draw.between(1, inside_tp ? 2 : 1));
}

/// What is computed while rows are under way, if they are.
void draw_overlap(Draw& draw, Plan& plan) {
  Parallel& p = plan.parallel;
  p.overlap = Overlap::none;
  if (plan.model.dense() || p.dispatch != DispatchComm::all_to_all || p.ep == 1) return;
  const bool shared = std::ranges::any_of(plan.model.layers.kinds(), [](const LayerSpec& layer) {
    return !layer.feed_forward.dense() && layer.feed_forward.mlp_size() > 0;
  });
  if (plan.workload.microbatches % 2 == 0 && draw.chance(60)) p.overlap = Overlap::two_batch;
  if (shared && draw.chance(50)) p.overlap = Overlap::shared_expert;
}

ModelConfig draw_model(Draw& draw, const Parallel& p) {
  ModelConfig m;
  m.layers.resize(p.pp + draw.between(0, 2));
  // An all-to-all over cp deals the heads of a rank out once more.
  const int dealt = p.tp * p.heads_dealt();
  m.layers.kind(0).attention.heads = dealt * draw.between(1, dealt > 8 ? 2 : 3);
  // Key/value heads divide the query heads, and tp and they divide one another.
  std::vector<int> kv;
  for (const int candidate : divisors(static_cast<int>(m.layers[0].attention.heads))) {
    if (candidate % dealt == 0 || (dealt == p.tp && p.tp % candidate == 0)) kv.push_back(candidate);
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

void stretch(Draw& draw, RopeSpec& rope) {
  rope.type = static_cast<RopeType>(draw.between(0, 3));
  if (rope.type == RopeType::plain) return;
  rope.factor = draw.one_of({2, 4, 32});
  rope.original_context = draw.between(8, 64);
  rope.truncate = draw.chance(50);
  if (rope.type == RopeType::yarn) rope.amplitude = draw.chance(50) ? 1.0 : 1.25;
}

void route_by_sigmoid(Draw& draw, FeedForwardSpec& spec) {
  spec.scoring = Scoring::sigmoid;
  spec.selection_bias = draw.chance(80);
  spec.routed_scaling_factor = draw.chance(50) ? 2.5 : 1.0;
}

/// In groups of two experts or more, of which enough are chosen from.
void group_experts(Draw& draw, FeedForwardSpec& spec) {
  const int experts = static_cast<int>(spec.num_experts);
  spec.groups = draw.one_of(divisors(experts));
  const std::int64_t size = experts / spec.groups;
  if (size < 2) spec.groups = 1;
  spec.top_groups = spec.groups == 1
                        ? 1
                        : draw.between(static_cast<int>((spec.top_k + size - 1) / size), static_cast<int>(spec.groups));
}

/// Some of the layers dense; at least one keeps its experts.
void mix_dense(Draw& draw, const Parallel& p, LayerList& layers) {
  const LayerSpec experts = layers[0];
  LayerSpec dense = experts;
  dense.feed_forward = {.intermediate_size = p.tp * draw.between(1, 6)};
  LayerList mixed;
  const auto kept = draw.between(0, static_cast<int>(layers.size()) - 1);
  for (std::int64_t i = 0; i < layers.size(); ++i) mixed.push_back(i != kept && draw.chance(40) ? dense : experts);
  layers = mixed;
}

void alternate_windows(Draw& draw, LayerList& layers) {
  LayerList mixed;
  const int window = draw.between(1, 6);
  for (std::int64_t i = 0; i < layers.size(); ++i) {
    LayerSpec layer = layers[i];
    layer.attention.sliding_window = i % 2 == 0 ? window : 0;
    mixed.push_back(layer);
  }
  layers = mixed;
}

void make_latent(Draw& draw, AttentionSpec& attention) {
  attention.kv_heads = attention.heads;
  attention.rope.dim = 2 * draw.between(1, 4);
  attention.rope.interleaved = true;
  attention.head_dim = attention.rope.dim + draw.between(1, 3) * 2;
  attention.v_head_dim = draw.between(1, 6);
  attention.q_lora_rank = draw.chance(60) ? draw.between(2, 9) : 0;
  attention.kv_lora_rank = draw.between(2, 9);
  stretch(draw, attention.rope);
  if (attention.rope.type == RopeType::yarn) attention.rope.mscale_all_dim = draw.chance(50) ? 1 : 0;
}

void add_features(Draw& draw, Drawn drawn, Plan& plan) {
  const Parallel& p = plan.parallel;
  LayerList& layers = plan.model.layers;
  AttentionSpec& attention = layers.kind(0).attention;
  FeedForwardSpec& experts = layers.kind(0).feed_forward;
  switch (drawn) {
    case Drawn::qwen3_moe:
      attention.query_key_norm = QueryKeyNorm::head;
      attention.qkv_bias = attention.output_bias = draw.chance(40);
      return mix_dense(draw, p, layers);
    case Drawn::qwen2_moe:
      attention.qkv_bias = true;
      experts.shared_intermediate_size = p.tp * draw.between(1, 6);
      experts.shared_gate = true;
      return mix_dense(draw, p, layers);
    case Drawn::deepseek:
      make_latent(draw, attention);
      attention.qkv_bias = attention.output_bias = draw.chance(30);
      if (draw.chance(70)) route_by_sigmoid(draw, experts);
      group_experts(draw, experts);
      experts.shared_intermediate_size = p.tp * draw.between(1, 6);
      return mix_dense(draw, p, layers);
    case Drawn::glm4_moe:
      attention.head_dim = 4 * draw.between(1, 3);
      attention.rope.dim = attention.head_dim / 2;
      attention.qkv_bias = draw.chance(70);
      if (draw.chance(70)) attention.query_key_norm = QueryKeyNorm::head;
      route_by_sigmoid(draw, experts);
      experts.shared_intermediate_size = p.tp * draw.between(1, 6);
      return mix_dense(draw, p, layers);
    case Drawn::gpt_oss:
      attention.qkv_bias = attention.output_bias = attention.sinks = true;
      stretch(draw, attention.rope);
      experts.router_bias = experts.expert_bias = true;
      experts.swiglu_limit = draw.one_of({1, 7});
      // What a rank has is constant, or zero, where it is narrow and clamped throughout.
      if (experts.intermediate_size < 4 * p.etp) experts.swiglu_limit = 7;
      return alternate_windows(draw, layers);
    case Drawn::dense:
      experts = {.intermediate_size = p.tp * draw.between(1, 6)};
      attention.qkv_bias = draw.chance(50);
      attention.output_bias = attention.qkv_bias && draw.chance(50);
      if (draw.chance(30)) attention.query_key_norm = QueryKeyNorm::head;
      stretch(draw, attention.rope);
      if (draw.chance(30)) alternate_windows(draw, layers);
      return;
    case Drawn::windowed:
      attention.sliding_window = draw.between(1, 6);
      return;
    case Drawn::olmoe:
      attention.query_key_norm = QueryKeyNorm::full;
      attention.qkv_bias = attention.output_bias = draw.chance(30);
      attention.clip_qkv = draw.chance(40) ? 0.5 * draw.between(1, 3) : 0;
      return;
    case Drawn::granitemoe:
      plan.model.embedding_multiplier = draw.one_of({1, 3, 12});
      plan.model.residual_multiplier = draw.chance(70) ? 0.22 : 1;
      plan.model.logits_scaling = draw.one_of({1, 6});
      attention.attention_multiplier = 0.2;
      return;
    case Drawn::phimoe:
      plan.model.layer_norm = true;
      plan.model.head_bias = draw.chance(60);
      attention.qkv_bias = attention.output_bias = draw.chance(60);
      if (draw.chance(60)) {
        attention.rope = {
            .type = RopeType::longrope, .original_context = 64, .amplitude = draw.chance(50) ? 1.0 : 1.25};
        for (std::int64_t i = 0; i < attention.head_dim / 2; ++i) {
          attention.rope.pair_factors.push_back(draw.between(8, 32) * 0.125);
        }
      }
      // Of two the second is chosen alone, and weighs 1.
      experts.num_experts += 3;
      experts.top_k = 2;
      experts.scoring = Scoring::sparsemixer;
      experts.router_jitter = draw.one_of({3, 4, 6}) * 0.125;
      // Of a few tokens every choice may be without a rival, and weigh 1.
      plan.workload.lengths.front() = std::max<std::int64_t>(plan.workload.lengths.front(), 8);
      if (draw.chance(30)) attention.sliding_window = draw.between(1, 6);
      return;
  }
}

}  // namespace

std::string to_string(Drawn drawn) {
  constexpr const char* kNames[] = {"qwen3_moe", "qwen2_moe", "deepseek", "glm4_moe",   "gpt_oss",
                                    "dense",     "windowed",  "olmoe",    "granitemoe", "phimoe"};
  return kNames[static_cast<std::size_t>(drawn)];
}

Plan random_family_plan(std::uint64_t seed, Drawn drawn, int max_world) {
  Plan plan = random_plan(seed, max_world);
  Draw draw(seed ^ 0x5eedfa3117U);
  plan.name = fmt::format("random {} {}", to_string(drawn), seed);
  Parallel& p = plan.parallel;
  if (drawn == Drawn::dense) {
    p.ep = p.etp = 1;
    p.edp = p.tp * p.cp * p.dp;
    p.dispatch = DispatchComm::all_to_all;
  }
  add_features(draw, drawn, plan);
  const bool in_ring = std::ranges::none_of(plan.model.layers.kinds(), [](const LayerSpec& layer) {
    return layer.attention.sliding_window > 0 || layer.attention.sinks;
  });
  if (p.in_ring() && !in_ring) p.cp_comm = CpComm::all_gather;
  if (p.cp_comm != CpComm::a2a_p2p) p.cp_a2a = 1;
  draw_overlap(draw, plan);
  return plan;
}

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
  draw_dispatch(draw, plan.parallel);
  if (draw.chance(20)) plan.parallel.make_vocab_size_divisible_by = draw.between(1, 8);
  draw_overlap(draw, plan);
  return plan;
}

namespace {

/// Every request in chunks of any length, a few of them a step.
std::vector<std::vector<StatedChunk>> draw_steps(Draw& draw, const Serving& serving) {
  std::vector<std::int64_t> left;
  for (const Request& request : serving.requests) left.push_back(request.tokens());
  std::vector<std::vector<StatedChunk>> steps;
  while (std::ranges::any_of(left, [](std::int64_t tokens) { return tokens > 0; })) {
    std::vector<StatedChunk> step;
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (left[i] == 0 || draw.chance(40)) continue;
      const std::int64_t tokens = draw.between(1, static_cast<int>(left[i]));
      step.push_back({static_cast<std::int64_t>(i), tokens});
      left[i] -= tokens;
    }
    if (!step.empty()) steps.push_back(std::move(step));
  }
  return steps;
}

ExpertPlacement draw_placement(Draw& draw, const Plan& plan) {
  using Map = ExpertPlacement::Map;
  ExpertPlacement placement{.redundant = draw.between(0, 4)};
  const std::int64_t experts = plan.model.experts().num_experts;
  constexpr Map kMaps[] = {Map::linear, Map::round_robin, Map::balanced, Map::given};
  placement.map = kMaps[draw.between(0, 3)];
  if (placement.map == Map::given) {
    std::vector<std::int64_t>& logical = placement.given.emplace_back();
    for (std::int64_t p = 0; p < experts + placement.redundant; ++p) {
      logical.push_back(p < experts ? experts - 1 - p : draw.between(0, static_cast<int>(experts) - 1));
    }
  }
  if (draw.chance(50) && !plan.parallel.routes_alike()) placement.replica = ExpertPlacement::Replica::nearest;
  return placement;
}

/// Ranks that hold the same key-value head may share out what is cached of it.
void draw_shares(Draw& draw, Plan& plan, const Serving& serving) {
  Parallel& p = plan.parallel;
  std::int64_t same = p.tp;
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    if (attention.sliding_window > 0 || attention.sinks) return;
    if (!attention.latent()) same = std::gcd(same, p.tp % attention.kv_heads == 0 ? p.tp / attention.kv_heads : 1);
  }
  if (same < 2 || draw.chance(30)) return;
  do p.dcp = draw.between(2, static_cast<int>(same));
  while (same % p.dcp != 0);
  do p.dcp_interleave = draw.between(1, static_cast<int>(serving.kv_block_size));
  while (serving.kv_block_size % p.dcp_interleave != 0);
}

/// Prompts of a group begin alike, as far as the shorter one's prefix goes.
void draw_prefixes(Draw& draw, Serving& serving) {
  serving.prefix_sharing = draw.chance(90);
  serving.kv_block_size = draw.between(1, 3);
  for (Request& request : serving.requests) {
    request.prefix = std::max<std::int64_t>(0, request.prompt - draw.between(0, 2));
    request.prefix_group = draw.chance(80) ? 0 : 1;
  }
}

}  // namespace

Plan serving(Plan plan, std::uint64_t seed) {
  Draw draw(seed ^ 0x5e41cedU);
  // Requests are served without context parallelism: its ranks are replicas.
  Parallel& p = plan.parallel;
  p.dp *= std::exchange(p.cp, 1);
  p.cp_comm = Parallel{}.cp_comm;
  p.cp_a2a = 1;
  const std::int64_t sequences = (plan.workload.batch() + p.dp - 1) / p.dp;
  plan.workload.microbatches = std::min(plan.workload.microbatches, sequences);
  if (p.overlap == Overlap::two_batch && plan.workload.microbatches % 2 != 0) p.overlap = Overlap::none;
  Serving serving{.requests = {}, .kv_block_size = draw.between(1, 5), .steps = {}};
  for (const std::int64_t length : plan.workload.lengths) {
    const std::int64_t output = draw.between(0, 6);
    serving.requests.push_back(
        {.prompt = length, .output = output, .arrival = draw.chance(50) ? draw.between(0, 7) : 0});
  }
  if (draw.chance(25)) {
    serving.steps = draw_steps(draw, serving);
  } else {
    if (draw.chance(60)) draw_prefixes(draw, serving);
    if (draw.chance(70)) serving.max_tokens_per_step = draw.between(1, 8);
    if (draw.chance(50)) serving.max_sequences = draw.between(1, 3);
    std::int64_t most = 1;
    for (const Request& request : serving.requests) most = std::max(most, serving.blocks_of(request.tokens(), 1));
    if (draw.chance(40)) serving.kv_blocks = most + draw.between(0, 3);
  }
  if (draw.chance(30)) plan.workload.idle = Idle::pad;
  plan.name += " served";
  draw_shares(draw, plan, serving);
  if (!plan.model.dense() && draw.chance(50)) plan.parallel.experts = draw_placement(draw, plan);
  plan.workload.serving = std::move(serving);
  set_lengths(plan.workload);
  if (plan.model.layers[0].attention.latent() && draw.chance(25)) plan.workload.latent_decode = LatentForm::plain;
  return plan;
}

std::string describe(const Plan& plan) {
  const Parallel& p = plan.parallel;
  const ModelConfig& m = plan.model;
  return fmt::format(
      "{}: tp{} cp{} by {} dcp{} by {} dp{} pp{} ({}) sp{} etp{} ep{} edp{} by {} overlap {}; layers {} heads {} kv {} "
      "head_dim {} "
      "hidden {} "
      "width "
      "{} experts "
      "{} "
      "top {} "
      "vocabulary {} (padded to {}) normalise {} tied {}; lengths {} microbatches {}",
      plan.name, p.tp, p.cp, to_string(p.cp_comm), p.dcp, p.dcp_interleave, p.dp, p.pp,
      fmt::join(p.layers_per_stage, ","), p.sp, p.etp, p.ep, p.edp, to_string(p.dispatch), to_string(p.overlap),
      m.layers.size(), m.layers[0].attention.heads, m.layers[0].attention.kv_heads, m.layers[0].attention.head_dim,
      m.hidden_size, m.layers[0].feed_forward.intermediate_size, m.layers[0].feed_forward.num_experts,
      m.layers[0].feed_forward.top_k, m.vocab_size, padded_vocabulary(m, p), m.layers[0].feed_forward.norm_topk_prob,
      m.tie_word_embeddings, fmt::join(plan.workload.lengths, ","), plan.workload.microbatches);
}

}  // namespace shardproof::testing
