// The reference: the unsharded transformer in float64, written from the model's definition.
//
// It shares nothing with the sharded program but the model's description, so that a bug in the one cannot hide in the
// other. Every tensor is whole, every sum is taken in order of its index, nothing runs in parallel.
//
// x, [tokens, hidden], starts as the tokens' embedding. Per layer (Mixtral; Jiang et al. 2024, and Hugging Face's
// modeling_mixtral):
//   x = x + Wo attention(rope(Wq n), rope(Wk n), Wv n)       n = rms_norm(x)
//   x = x + sum over chosen experts e of  weight_e * W2_e (silu(W1_e n) * W3_e n)       n = rms_norm(x)
// then logits = head rms_norm(x).
//
// What other families have (emu/model/config.h says what each field means; math.h has the functions):
//   biases of the projections (of latent attention those of the latents), of the router and of the experts; queries and
//   keys normed inside each head, or over all, before RoPE; these and values clamped;
//   latent attention (reference.cpp, project_latent, and absorb() for tokens in its absorbed form); windows and sinks
//   (attention()); scores by sigmoid, with a bias for the choice alone, and groups (route()); an MLP beside the
//   experts, x = x + (experts + mlp(n)), mlp(n) perhaps times sigmoid(w n); layers with an MLP and no experts.
//
// Taps, in program order, each [tokens, width] with the sequences of the batch one after another:
//   embedding; per layer N: layer.N.attention.{norm, q, k, v, context, output, residual} (q and k after RoPE),
//   layer.N.moe.{norm, router_logits, router_choice, router_weights, output, residual}; final_norm; logits. Where the
//   layer has them: attention.{q_latent, q_latent_norm, kv_latent, kv_latent_norm}, moe.{router_scores, sum},
//   mlp.{output, shared_gate, shared_output}; without experts, no moe.* but norm and residual.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "emu/model/config.h"
#include "emu/reference/budget.h"

namespace shardproof::reference {

/// Makes `values` the rows begin..begin+count of the tensor of that Hugging Face name, row-major, in float64, whatever
/// it held before: the same memory serves for one tensor after the other; a vector is one row. Asked for layer by
/// layer, a few million elements at a time, each dropped after its use; an expert that no token chose is not asked for,
/// of the embedding only rows of tokens are. Names: model.embed_tokens.weight [vocab, hidden],
/// model.layers.N.{input_layernorm, post_attention_layernorm}.weight [hidden],
/// model.layers.N.self_attn.{q,k,v,o}_proj.weight [out, in], model.layers.N.block_sparse_moe.gate.weight
/// [experts, hidden], model.layers.N.block_sparse_moe.experts.E.{w1,w3,w2}.weight (gate, up: [width, hidden]; down:
/// [hidden, width]), model.norm.weight [hidden], lm_head.weight [vocab, hidden] (not asked for when tied); of other
/// families' weights the names of the table in emu/model/tensors.h.
using ReadWeight =
    std::function<void(const std::string& name, std::int64_t begin, std::int64_t count, std::vector<double>& values)>;

/// Receives each tap: name, rows, cols, values row-major. The router's choice arrives as doubles holding expert ids.
using KeepTap =
    std::function<void(const TapName& name, std::int64_t rows, std::int64_t cols, std::vector<double>&& values)>;

struct Options {
  /// exact: every value that a kernel would store is rounded to the grid of that format (multiples of 2^-10), every
  /// exponential and every sine and cosine of RoPE to multiples of 2^-20. Otherwise nothing is rounded.
  Arithmetic arithmetic = Arithmetic::float64;
  /// In `exact`: told of every sum how many bits it needs to be exact in any order (budget.h).
  SumSink on_sum = {};
  /// Of each token, whether latent attention computes it in the absorbed form; empty: none.
  std::vector<bool> absorbed = {};
};

/// Runs the model on the sequences of `lengths`, whose ids stand one after another in `tokens`, and hands every tap to
/// `sink`. Throws std::invalid_argument when the lengths do not add up, a token is outside the vocabulary, the model's
/// sizes make no model, or the source returns a tensor of another size or, to `on_sum`, weights off the grid.
void forward(const ModelConfig& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths,
             const ReadWeight& weights, const Options& options, const KeepTap& sink);

}  // namespace shardproof::reference
