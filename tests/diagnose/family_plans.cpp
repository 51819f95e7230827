#include "tests/diagnose/family_plans.h"

#include <functional>

#include "tests/support/small_plan.h"

namespace shardproof::testing {

namespace {

Plan with_layers(const Parallel& parallel, const std::function<void(LayerSpec&)>& edit) {
  Plan plan = small_plan(parallel);
  plan.model.layers.edit(edit);
  return plan;
}

}  // namespace

Plan deepseek() {
  return with_layers({.tp = 2, .dp = 2, .ep = 2, .edp = 2}, [](LayerSpec& layer) {
    layer.attention.kv_heads = layer.attention.heads;
    layer.attention.head_dim = 6;
    layer.attention.v_head_dim = 4;
    layer.attention.rope.dim = 2;
    layer.attention.q_lora_rank = 5;
    layer.attention.kv_lora_rank = 6;
    layer.feed_forward.scoring = Scoring::sigmoid;
    layer.feed_forward.selection_bias = true;
    layer.feed_forward.groups = 2;
    layer.feed_forward.top_groups = 1;
    layer.feed_forward.routed_scaling_factor = 1.5;
    layer.feed_forward.shared_intermediate_size = 8;
  });
}

Plan gpt_oss() {
  return with_layers({.tp = 2, .dp = 2, .ep = 2, .etp = 2}, [](LayerSpec& layer) {
    layer.attention.qkv_bias = layer.attention.output_bias = layer.attention.sinks = true;
    layer.feed_forward.router_bias = layer.feed_forward.expert_bias = true;
    layer.feed_forward.swiglu_limit = 1;
  });
}

Plan phimoe() {
  Plan plan = with_layers({.tp = 2, .dp = 2, .ep = 2, .etp = 2}, [](LayerSpec& layer) {
    layer.attention.qkv_bias = layer.attention.output_bias = true;
    layer.feed_forward.scoring = Scoring::sparsemixer;
    layer.feed_forward.router_jitter = 0.375;
    layer.feed_forward.norm_topk_prob = false;
  });
  plan.model.layer_norm = plan.model.head_bias = true;
  return plan;
}

Plan olmoe() {
  return with_layers({.tp = 2, .dp = 2, .ep = 2, .etp = 2, .sp = true},
                     [](LayerSpec& layer) { layer.attention.query_key_norm = QueryKeyNorm::full; });
}

Plan qwen() {
  return with_layers({.tp = 2, .dp = 2, .ep = 2, .etp = 2}, [](LayerSpec& layer) {
    layer.attention.query_key_norm = QueryKeyNorm::head;
    layer.feed_forward.shared_intermediate_size = 8;
    layer.feed_forward.shared_gate = true;
  });
}

Plan granite() {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 2, .etp = 2});
  plan.model.embedding_multiplier = 3;
  plan.model.residual_multiplier = 0.25;
  plan.model.logits_scaling = 2;
  return plan;
}

namespace {

Plan served(const Parallel& parallel) {
  Plan plan = small_plan(parallel);
  plan.workload.serving = Serving{.requests = {{.prompt = 7, .output = 5}, {.prompt = 5, .output = 3}, {.prompt = 4}},
                                  .max_tokens_per_step = 6,
                                  .kv_block_size = 4,
                                  .steps = {}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  return plan;
}
}  // namespace

Plan cached() {
  return served({.tp = 2, .dp = 2, .ep = 4});
}
Plan cached_latents() {
  Plan plan = served({.tp = 2, .dp = 2, .ep = 4});
  plan.model.layers = deepseek().model.layers;
  return plan;
}
Plan cached_over_dcp() {
  return served({.tp = 4, .ep = 4, .dcp = 2});
}

namespace {

Plan over_cp(CpComm by) {
  // Heads that are shared out over cp beside tp have to be as many.
  const int tp = by == CpComm::a2a ? 1 : 2;
  Plan plan = small_plan({.tp = tp, .cp = 2, .ep = 2 * tp, .cp_comm = by});
  plan.workload.lengths = {9, 7};
  plan.workload.microbatches = 1;
  return plan;
}
}  // namespace

Plan ring() {
  return over_cp(CpComm::p2p);
}
Plan gathered_keys() {
  return over_cp(CpComm::all_gather);
}
Plan heads_over_cp() {
  return over_cp(CpComm::a2a);
}

namespace {

Plan summed_over_ep(DispatchComm by) {
  return small_plan({.tp = 2, .dp = 2, .ep = 4, .dispatch = by});
}
}  // namespace

Plan gathered_tokens() {
  return summed_over_ep(DispatchComm::all_gather);
}
Plan tokens_everywhere() {
  Plan plan = small_plan({.tp = 4, .ep = 4, .dispatch = DispatchComm::all_reduce});
  return plan;
}

}  // namespace shardproof::testing
