// The table of taps: every intermediate tensor that is held to the reference, with its shape and how it lies on the
// mesh.
//
// A tap is a matrix [tokens of the global batch, width]. Its name is printed and, in files, read; nowhere else is it
// taken apart: code names a tap by its TapId.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/model/tensors.h"

namespace shardproof {

/// A row of the table, in program order.
enum class TapKind : std::int8_t {
  embedding,
  embedding_scaled,  ///< by its multiplier, where there is one
  attention_norm,
  attention_q_latent,  ///< latent attention: what queries are made by way of
  attention_q_latent_norm,
  attention_q_projection,  ///< before norm and rotary embedding, where more than the one product leads to q
  attention_kv_latent,     ///< latent attention: what keys and values are made by way of, and the key that heads share
  attention_kv_latent_norm,
  attention_kv_projection,  ///< latent attention: each head's key and value from there
  attention_k_projection,
  attention_squares_partial,  ///< norms over all heads: of a rank's queries, and of its keys, the sum of squares; ...
  attention_squares,          ///< ... and of all. Neither is stored
  attention_q_normed,         ///< inside each head, or over all of them
  attention_k_normed,
  attention_q,  ///< after the rotary embedding, as is k
  attention_k,
  attention_v,
  attention_q_absorbed,      ///< of absorbed tokens (emu/plan/latent_form.h): each head's query of latents, ...
  attention_latent_part,     ///< ... over dcp what it weighs of those that one rank keeps, and ...
  attention_latent_lse,      ///< ... the log of the sum, as of a ring's part, ...
  attention_latent_context,  ///< ... and what it weighs of all
  attention_ring_context,    ///< in a ring over cp, or over dcp: of the keys that one rank holds, normalised by ...
  attention_ring_lse,        ///< ... the log of the sum of their exponentials; -infinity of no key. Not stored
  attention_context,
  attention_partial,  ///< of the output, before its reduction, as stored
  attention_output,   ///< after its reduction
  attention_residual,
  moe_norm,
  router_logits,
  router_scores,  ///< what the choice is made by, where that is not the logits; not stored
  router_choice,  ///< expert ids, best first
  router_weights,
  expert_gate,
  expert_up,
  expert_activation,
  expert_partial,  ///< of an expert's output, before its reduction, as stored
  expert_output,   ///< after its reduction, back with its token
  moe_partial,     ///< combined of one rank's experts, before its reduction over ep, as stored
  moe_output,      ///< combined
  mlp_gate,        ///< of the MLP that serves every token
  mlp_up,
  mlp_activation,
  mlp_partial,    ///< of its output, before its reduction, as stored
  mlp_output,     ///< after its reduction
  shared_gate,    ///< the logit of the gate on it
  shared_output,  ///< behind the gate
  moe_sum,        ///< of the experts and what serves every token
  moe_residual,
  final_norm,
  logits,
};
inline constexpr int kTapKinds = static_cast<int>(TapKind::logits) + 1;

/// Which rows of a microbatch a rank has of it.
enum class TapRows {
  stream,  ///< the rank's part of the residual stream: its own rows under sequence parallelism, else all
  all,
  own,  ///< the rows that the rank routes
};

/// Where every rank along an axis has a partial sum, a tap is one rank's of them (TapId::part). In a ring over cp, and
/// over dcp, every rank has a part of its rows for the keys of each, and a tap is that for one rank's keys.
enum class TapParts { whole, over_tp, over_etp, over_ep, over_keys };

/// A layer in which it is 0 wide has no such tap.
struct TapRow {
  TapKind kind{};
  std::string_view name;
  bool in_layer = true;
  /// Tapped only for who asks for it (TapSink::inner): the steps of what is otherwise one tap.
  bool inner = false;
  /// Of absorbed tokens alone; the rows of the others are not there.
  bool absorbed = false;
  /// A row is not a token but a slot: row token * top_k + i is of the token's i-th chosen expert.
  bool slots = false;
  TapParts parts = TapParts::whole;
  std::int64_t (*width)(const ModelConfig& model, const LayerSpec& layer) = nullptr;
  TapRows rows = TapRows::stream;
  Split cols = Split::none;
  bool ids = false;  ///< values are ids, compared for equality
};

/// The rows in order of TapKind.
std::span<const TapRow> tap_table();
inline const TapRow& tap_row(TapKind kind) {
  return tap_table()[static_cast<std::size_t>(kind)];
}

/// One tap of a run. What is -1 is absent, and is not printed. Ordered as the program makes them.
struct TapId {
  int step = -1;
  int layer = -1;
  TapKind kind{};
  int expert = -1;
  int slot = -1;
  int part = -1;  ///< the rank along the axis that the row's `parts` names

  bool operator==(const TapId&) const = default;
};

/// "layer.3.attention.q", "logits".
std::string to_string(const TapId& id);
/// The inverse, for what a file or a command line names; none for any other text.
std::optional<TapId> parse_tap_id(std::string_view text);

/// The kind whose row has that name.
std::optional<TapKind> find_tap_kind(std::string_view name);

/// Every tap of a forward over whole sequences, in program order, without the inner ones.
std::vector<TapId> all_taps(const ModelConfig& model);

/// How many partial sums there are of what is reduced.
struct TapPartCounts {
  int tp = 1;
  int etp = 1;
  int ep = 0;             ///< of the combined experts, where ranks of ep make them of the same tokens
  int keys = 0;           ///< of attention, one for the keys of each rank (Parallel::key_parts)
  int latents = 0;        ///< of its absorbed form, one for the latents of each rank (Parallel::latent_parts)
  bool absorbed = false;  ///< some tokens attend in the absorbed form
};
/// The same with the inner taps.
std::vector<TapId> all_taps(const ModelConfig& model, const TapPartCounts& parts);

/// Rows of the whole tensor, of a batch of so many tokens.
std::int64_t tap_rows(const ModelConfig& model, const TapId& id, std::int64_t tokens);

/// What the second block of a layer adds to the residual stream.
TapKind feed_forward_addend(const LayerSpec& layer);

/// Elements of a row.
std::int64_t tap_width(const ModelConfig& model, const TapId& id);

}  // namespace shardproof
