// What each tap is computed from.
#include <algorithm>
#include <iterator>

#include "emu/judge/rounding/internal/rule.h"
#include "emu/plan/latent_form.h"

namespace shardproof::rounding {

TapId stream_before(const ModelConfig& model, int layer) {
  if (layer > 0) return {.layer = layer - 1, .kind = TapKind::moe_residual};
  return {.kind = model.embedding_multiplier != 1 ? TapKind::embedding_scaled : TapKind::embedding};
}

TapKind query_source(const LayerSpec& layer) {
  return layer.attention.q_lora_rank > 0 ? TapKind::attention_q_latent_norm : TapKind::attention_norm;
}

TapKind before_rotation(const ModelConfig& model, const TapId& tap, TapKind projection, TapKind normed) {
  const auto has = [&](TapKind kind) { return tap_width(model, {.layer = tap.layer, .kind = kind}) > 0; };
  return has(normed) ? normed : has(projection) ? projection : TapKind::attention_norm;
}

TapKind choice_source(const LayerSpec& layer) {
  return layer.feed_forward.scoring == Scoring::sigmoid ? TapKind::router_scores : TapKind::router_logits;
}

TapKind shared_addend(const LayerSpec& layer) {
  return layer.feed_forward.shared_gate ? TapKind::shared_output : TapKind::mlp_output;
}

std::vector<TapId> inputs_of(const Plan& plan, const TapId& tap) {
  const auto of = [&](TapKind kind) { return TapId{.layer = tap.layer, .kind = kind}; };
  const auto parts = [&](TapKind kind, int count) {
    std::vector<TapId> ids;
    for (int part = 0; part < count; ++part) ids.push_back({.layer = tap.layer, .kind = kind, .part = part});
    return ids;
  };
  switch (tap.kind) {
    case TapKind::embedding:
      return {};
    case TapKind::embedding_scaled:
      return {{.kind = TapKind::embedding}};
    case TapKind::attention_norm:
      return {stream_before(plan.model, tap.layer)};
    case TapKind::attention_q_latent:
    case TapKind::attention_kv_latent:
    case TapKind::attention_k_projection:
      return {of(TapKind::attention_norm)};
    case TapKind::attention_q_latent_norm:
      return {of(TapKind::attention_q_latent)};
    case TapKind::attention_kv_latent_norm:
      return {of(TapKind::attention_kv_latent)};
    case TapKind::attention_kv_projection:
      return {of(TapKind::attention_kv_latent_norm)};
    case TapKind::attention_q_projection:
      return {of(query_source(plan.model.layers[tap.layer]))};
    case TapKind::attention_squares_partial:
      return {of(TapKind::attention_q_projection), of(TapKind::attention_k_projection)};
    case TapKind::attention_squares:
      return parts(TapKind::attention_squares_partial, plan.parallel.tp);
    case TapKind::attention_q_normed:
    case TapKind::attention_k_normed: {
      std::vector<TapId> ids{of(tap.kind == TapKind::attention_q_normed ? TapKind::attention_q_projection
                                                                        : TapKind::attention_k_projection)};
      const bool full = plan.model.layers[tap.layer].attention.query_key_norm == QueryKeyNorm::full;
      if (full) ids.push_back(of(TapKind::attention_squares));
      return ids;
    }
    case TapKind::attention_q:
      return {of(before_rotation(plan.model, tap, TapKind::attention_q_projection, TapKind::attention_q_normed))};
    case TapKind::attention_k:
      if (plan.model.layers[tap.layer].attention.latent()) {
        return {of(TapKind::attention_kv_projection), of(TapKind::attention_kv_latent)};
      }
      return {of(before_rotation(plan.model, tap, TapKind::attention_k_projection, TapKind::attention_k_normed))};
    case TapKind::attention_v:
      return {of(plan.model.layers[tap.layer].attention.latent() ? TapKind::attention_kv_projection
                                                                 : TapKind::attention_norm)};
    case TapKind::attention_ring_context:
    case TapKind::attention_ring_lse:
      return {of(TapKind::attention_q), of(TapKind::attention_k), of(TapKind::attention_v)};
    case TapKind::attention_q_absorbed:
      return {of(TapKind::attention_q)};
    case TapKind::attention_latent_part:
    case TapKind::attention_latent_lse:
      return {of(TapKind::attention_q_absorbed), of(TapKind::attention_kv_latent_norm), of(TapKind::attention_k)};
    case TapKind::attention_latent_context: {
      const int count = plan.parallel.latent_parts();
      if (count == 0) {
        return {of(TapKind::attention_q_absorbed), of(TapKind::attention_kv_latent_norm), of(TapKind::attention_k)};
      }
      std::vector<TapId> ids = parts(TapKind::attention_latent_part, count);
      std::ranges::copy(parts(TapKind::attention_latent_lse, count), std::back_inserter(ids));
      return ids;
    }
    case TapKind::attention_context: {
      const int count = plan.parallel.key_parts(plan.model.layers[tap.layer].attention.latent());
      if (count == 0) {
        std::vector<TapId> ids{of(TapKind::attention_q), of(TapKind::attention_k), of(TapKind::attention_v)};
        const bool latent = plan.model.layers[tap.layer].attention.latent();
        if (latent && has_absorbed(plan)) ids.push_back(of(TapKind::attention_latent_context));
        return ids;
      }
      std::vector<TapId> ids = parts(TapKind::attention_ring_context, count);
      std::ranges::copy(parts(TapKind::attention_ring_lse, count), std::back_inserter(ids));
      return ids;
    }
    case TapKind::attention_partial:
      return {of(TapKind::attention_context)};
    case TapKind::attention_output:
      return parts(TapKind::attention_partial, plan.parallel.tp);
    case TapKind::attention_residual:
      return {stream_before(plan.model, tap.layer), of(TapKind::attention_output)};
    case TapKind::moe_norm:
      return {of(TapKind::attention_residual)};
    case TapKind::router_logits:
      return {of(TapKind::moe_norm)};
    case TapKind::router_scores:
      return {of(TapKind::router_logits)};
    case TapKind::router_choice:
      return {of(choice_source(plan.model.layers[tap.layer]))};
    case TapKind::router_weights:
      return {of(TapKind::router_logits), of(TapKind::router_choice)};
    case TapKind::expert_gate:
    case TapKind::expert_up:
      return {of(TapKind::moe_norm), of(TapKind::router_choice)};
    case TapKind::expert_activation:
      return {of(TapKind::expert_gate), of(TapKind::expert_up)};
    case TapKind::expert_partial:
      return {of(TapKind::expert_activation), of(TapKind::router_choice)};
    case TapKind::expert_output:
      return parts(TapKind::expert_partial, plan.parallel.etp);
    case TapKind::moe_partial:
      return {of(TapKind::expert_output), of(TapKind::router_weights), of(TapKind::router_choice)};
    case TapKind::moe_output:
      if (plan.parallel.sums_over_ep()) return parts(TapKind::moe_partial, plan.parallel.ep);
      return {of(TapKind::expert_output), of(TapKind::router_weights)};
    case TapKind::mlp_gate:
    case TapKind::mlp_up:
    case TapKind::shared_gate:
      return {of(TapKind::moe_norm)};
    case TapKind::mlp_activation:
      return {of(TapKind::mlp_gate), of(TapKind::mlp_up)};
    case TapKind::mlp_partial:
      return {of(TapKind::mlp_activation)};
    case TapKind::mlp_output:
      return parts(TapKind::mlp_partial, plan.parallel.tp);
    case TapKind::shared_output:
      return {of(TapKind::mlp_output), of(TapKind::shared_gate)};
    case TapKind::moe_sum:
      return {of(TapKind::moe_output), of(shared_addend(plan.model.layers[tap.layer]))};
    case TapKind::moe_residual:
      return {of(TapKind::attention_residual), of(feed_forward_addend(plan.model.layers[tap.layer]))};
    case TapKind::final_norm:
      return {stream_before(plan.model, static_cast<int>(plan.model.layers.size()))};
    case TapKind::logits:
      return {{.kind = TapKind::final_norm}};
  }
  return {};
}

bool derivable(TapKind kind, bool inputs_are_own) {
  if (kind == TapKind::router_logits) return false;
  const bool stream = kind == TapKind::attention_residual || kind == TapKind::moe_residual;
  return inputs_are_own || !(stream || kind == TapKind::router_choice || kind == TapKind::router_weights);
}

}  // namespace shardproof::rounding
