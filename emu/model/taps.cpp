#include "emu/model/taps.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "emu/model/internal/sizes.h"

namespace shardproof {
namespace {

constexpr std::array<TapRow, kTapKinds> kTapTable{{
    {.kind = TapKind::embedding, .name = "embedding", .in_layer = false, .width = sizes::hidden},
    {.kind = TapKind::embedding_scaled,
     .name = "embedding.scaled",
     .in_layer = false,
     .width = sizes::scaled_embedding},
    {.kind = TapKind::attention_norm, .name = "attention.norm", .width = sizes::hidden},
    {.kind = TapKind::attention_q_latent, .name = "attention.q_latent", .width = sizes::q_rank, .rows = TapRows::all},
    {.kind = TapKind::attention_q_latent_norm,
     .name = "attention.q_latent_norm",
     .width = sizes::q_rank,
     .rows = TapRows::all},
    {.kind = TapKind::attention_q_projection,
     .name = "attention.q_projection",
     .inner = true,
     .width = sizes::q_projection,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_kv_latent,
     .name = "attention.kv_latent",
     .width = sizes::kv_latent,
     .rows = TapRows::all},
    {.kind = TapKind::attention_kv_latent_norm,
     .name = "attention.kv_latent_norm",
     .width = sizes::kv_rank,
     .rows = TapRows::all},
    {.kind = TapKind::attention_kv_projection,
     .name = "attention.kv_projection",
     .inner = true,
     .width = sizes::kv_from_latent,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_k_projection,
     .name = "attention.k_projection",
     .inner = true,
     .width = sizes::k_projection,
     .rows = TapRows::all,
     .cols = Split::kv_heads},
    {.kind = TapKind::attention_squares_partial,
     .name = "attention.squares_partial",
     .inner = true,
     .parts = TapParts::over_tp,
     .width = sizes::squares,
     .rows = TapRows::all},
    {.kind = TapKind::attention_squares,
     .name = "attention.squares",
     .inner = true,
     .width = sizes::squares,
     .rows = TapRows::all},
    {.kind = TapKind::attention_q_normed,
     .name = "attention.q_normed",
     .inner = true,
     .width = sizes::q_normed,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_k_normed,
     .name = "attention.k_normed",
     .inner = true,
     .width = sizes::k_normed,
     .rows = TapRows::all,
     .cols = Split::kv_heads},
    {.kind = TapKind::attention_q,
     .name = "attention.q",
     .width = sizes::q_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_k,
     .name = "attention.k",
     .width = sizes::k_width,
     .rows = TapRows::all,
     .cols = Split::kv_heads},
    {.kind = TapKind::attention_v,
     .name = "attention.v",
     .width = sizes::v_width,
     .rows = TapRows::all,
     .cols = Split::kv_heads},
    {.kind = TapKind::attention_q_absorbed,
     .name = "attention.q_absorbed",
     .inner = true,
     .absorbed = true,
     .width = sizes::absorbed_q_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_latent_part,
     .name = "attention.latent_part",
     .inner = true,
     .absorbed = true,
     .parts = TapParts::over_keys,
     .width = sizes::latent_context_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_latent_lse,
     .name = "attention.latent_lse",
     .inner = true,
     .absorbed = true,
     .parts = TapParts::over_keys,
     .width = sizes::latent_heads,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_latent_context,
     .name = "attention.latent_context",
     .inner = true,
     .absorbed = true,
     .width = sizes::latent_context_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_ring_context,
     .name = "attention.ring_context",
     .inner = true,
     .parts = TapParts::over_keys,
     .width = sizes::context_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_ring_lse,
     .name = "attention.ring_lse",
     .inner = true,
     .parts = TapParts::over_keys,
     .width = sizes::q_heads,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_context,
     .name = "attention.context",
     .width = sizes::context_width,
     .rows = TapRows::all,
     .cols = Split::q_heads},
    {.kind = TapKind::attention_partial,
     .name = "attention.partial",
     .inner = true,
     .parts = TapParts::over_tp,
     .width = sizes::hidden,
     .rows = TapRows::all},
    {.kind = TapKind::attention_output, .name = "attention.output", .width = sizes::hidden},
    {.kind = TapKind::attention_residual, .name = "attention.residual", .width = sizes::hidden},
    {.kind = TapKind::moe_norm, .name = "moe.norm", .width = sizes::hidden},
    {.kind = TapKind::router_logits, .name = "moe.router_logits", .width = sizes::experts, .rows = TapRows::own},
    {.kind = TapKind::router_scores, .name = "moe.router_scores", .width = sizes::router_scores, .rows = TapRows::own},
    {.kind = TapKind::router_choice,
     .name = "moe.router_choice",
     .width = sizes::top_k,
     .rows = TapRows::own,
     .ids = true},
    {.kind = TapKind::router_weights, .name = "moe.router_weights", .width = sizes::top_k, .rows = TapRows::own},
    {.kind = TapKind::expert_gate,
     .name = "moe.expert_gate",
     .inner = true,
     .slots = true,
     .width = sizes::intermediate,
     .cols = Split::intermediate_size},
    {.kind = TapKind::expert_up,
     .name = "moe.expert_up",
     .inner = true,
     .slots = true,
     .width = sizes::intermediate,
     .cols = Split::intermediate_size},
    {.kind = TapKind::expert_activation,
     .name = "moe.expert_activation",
     .inner = true,
     .slots = true,
     .width = sizes::intermediate,
     .cols = Split::intermediate_size},
    {.kind = TapKind::expert_partial,
     .name = "moe.expert_partial",
     .inner = true,
     .slots = true,
     .parts = TapParts::over_etp,
     .width = sizes::routed_hidden},
    {.kind = TapKind::expert_output,
     .name = "moe.expert_output",
     .inner = true,
     .slots = true,
     .width = sizes::routed_hidden},
    {.kind = TapKind::moe_partial,
     .name = "moe.partial",
     .inner = true,
     .parts = TapParts::over_ep,
     .width = sizes::routed_hidden,
     .rows = TapRows::all},
    {.kind = TapKind::moe_output, .name = "moe.output", .width = sizes::routed_hidden},
    {.kind = TapKind::mlp_gate,
     .name = "mlp.gate",
     .inner = true,
     .width = sizes::mlp,
     .rows = TapRows::all,
     .cols = Split::mlp_size},
    {.kind = TapKind::mlp_up,
     .name = "mlp.up",
     .inner = true,
     .width = sizes::mlp,
     .rows = TapRows::all,
     .cols = Split::mlp_size},
    {.kind = TapKind::mlp_activation,
     .name = "mlp.activation",
     .inner = true,
     .width = sizes::mlp,
     .rows = TapRows::all,
     .cols = Split::mlp_size},
    {.kind = TapKind::mlp_partial,
     .name = "mlp.partial",
     .inner = true,
     .parts = TapParts::over_tp,
     .width = sizes::mlp_hidden,
     .rows = TapRows::all},
    {.kind = TapKind::mlp_output, .name = "mlp.output", .width = sizes::mlp_hidden},
    {.kind = TapKind::shared_gate, .name = "mlp.shared_gate", .width = sizes::one_shared_gate},
    {.kind = TapKind::shared_output, .name = "mlp.shared_output", .width = sizes::gated_hidden},
    {.kind = TapKind::moe_sum, .name = "moe.sum", .width = sizes::shared_hidden},
    {.kind = TapKind::moe_residual, .name = "moe.residual", .width = sizes::hidden},
    {.kind = TapKind::final_norm, .name = "final_norm", .in_layer = false, .width = sizes::hidden},
    {.kind = TapKind::logits,
     .name = "logits",
     .in_layer = false,
     .width = sizes::vocabulary,
     .rows = TapRows::all,
     .cols = Split::vocabulary},
}};

/// Takes "word.N." off the front of the text.
std::optional<int> take_index(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) return std::nullopt;
  const std::string_view rest = text.substr(word.size());
  int index = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
  const auto used = static_cast<std::size_t>(end - rest.data());
  if (error != std::errc() || index < 0 || used >= rest.size() || rest[used] != '.') return std::nullopt;
  text = rest.substr(used + 1);
  return index;
}

/// `parts` null: without the inner ones.
std::vector<TapId> list_taps(const ModelConfig& model, const TapPartCounts* parts) {
  std::vector<TapId> taps{{.kind = TapKind::embedding}};
  if (model.embedding_multiplier != 1) taps.push_back({.kind = TapKind::embedding_scaled});
  for (int layer = 0; layer < model.layers.size(); ++layer) {
    for (const TapRow& row : kTapTable) {
      if (!row.in_layer || (row.inner && parts == nullptr) || row.width(model, model.layers[layer]) == 0) continue;
      if (row.absorbed && !parts->absorbed) continue;
      if (row.parts == TapParts::whole) {
        taps.push_back({.layer = layer, .kind = row.kind});
        continue;
      }
      const int count = row.parts == TapParts::over_tp    ? parts->tp
                        : row.parts == TapParts::over_etp ? parts->etp
                        : row.parts == TapParts::over_ep  ? parts->ep
                        : row.absorbed                    ? parts->latents
                                                          : parts->keys;
      for (int part = 0; part < count; ++part) taps.push_back({.layer = layer, .kind = row.kind, .part = part});
    }
  }
  taps.push_back({.kind = TapKind::final_norm});
  taps.push_back({.kind = TapKind::logits});
  return taps;
}

}  // namespace

std::span<const TapRow> tap_table() {
  return kTapTable;
}

std::string to_string(const TapId& id) {
  std::string text;
  const auto add = [&](std::string_view word, int index) {
    if (index >= 0) text += fmt::format("{}.{}.", word, index);
  };
  add("step", id.step);
  add("layer", id.layer);
  text += tap_row(id.kind).name;
  if (id.expert >= 0) text += fmt::format(".expert.{}", id.expert);
  if (id.slot >= 0) text += fmt::format(".slot.{}", id.slot);
  if (id.part >= 0) text += fmt::format(".part.{}", id.part);
  return text;
}

std::optional<TapId> parse_tap_id(std::string_view text) {
  TapId id;
  std::string_view rest = text;
  id.step = take_index(rest, "step.").value_or(-1);
  id.layer = take_index(rest, "layer.").value_or(-1);
  // The longest name that fits: one may begin with another.
  const TapRow* found = nullptr;
  for (const TapRow& row : kTapTable) {
    const bool fits = rest == row.name || (rest.starts_with(row.name) && rest[row.name.size()] == '.');
    if (fits && (found == nullptr || row.name.size() > found->name.size())) found = &row;
  }
  if (found == nullptr || found->in_layer != (id.layer >= 0)) return std::nullopt;
  id.kind = found->kind;
  std::string tail = fmt::format("{}.", rest.substr(found->name.size()));
  std::string_view after = tail;
  if (after.starts_with('.')) after.remove_prefix(1);
  id.expert = take_index(after, "expert.").value_or(-1);
  id.slot = take_index(after, "slot.").value_or(-1);
  id.part = take_index(after, "part.").value_or(-1);
  if (to_string(id) != text) return std::nullopt;
  return id;
}

std::optional<TapKind> find_tap_kind(std::string_view name) {
  const auto found = std::ranges::find(kTapTable, name, &TapRow::name);
  if (found == kTapTable.end()) return std::nullopt;
  return found->kind;
}

std::vector<TapId> all_taps(const ModelConfig& model) {
  return list_taps(model, nullptr);
}

std::vector<TapId> all_taps(const ModelConfig& model, const TapPartCounts& parts) {
  return list_taps(model, &parts);
}

std::int64_t tap_rows(const ModelConfig& model, const TapId& id, std::int64_t tokens) {
  return tap_row(id.kind).slots ? tokens * model.layers[id.layer].feed_forward.top_k : tokens;
}

TapKind feed_forward_addend(const LayerSpec& layer) {
  const FeedForwardSpec& spec = layer.feed_forward;
  if (spec.dense()) return TapKind::mlp_output;
  return spec.shared_intermediate_size > 0 ? TapKind::moe_sum : TapKind::moe_output;
}

std::int64_t tap_width(const ModelConfig& model, const TapId& id) {
  static const LayerSpec kNone;
  return tap_row(id.kind).width(model, id.layer < 0 ? kNone : model.layers[id.layer]);
}

}  // namespace shardproof
