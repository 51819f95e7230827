// One application of a rule: the tap, its inputs and its weights.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/judge/rounding/op_rules.h"
#include "emu/reference/math.h"

namespace shardproof::rounding {

/// Where the last layer, or the embedding, left the residual stream before `layer`.
TapId stream_before(const ModelConfig& model, int layer);
/// What queries are projected from.
TapKind query_source(const LayerSpec& layer);
/// What is rotated: norms, a product with its bias, or, held together with its product, what that is of.
TapKind before_rotation(const ModelConfig& model, const TapId& tap, TapKind projection, TapKind normed);
/// What the experts are chosen by.
TapKind choice_source(const LayerSpec& layer);
/// What is added to the experts' output.
TapKind shared_addend(const LayerSpec& layer);

class Rule {
 public:
  Rule(const Rules& rules, const RunTensors& tensors, const TapId& tap) : rules_(rules), tensors_(tensors), tap_(tap) {}
  /// Of a tap that the run did not hand in: what is computed goes into `made`, of the tap's shape.
  Rule(const Rules& rules, const RunTensors& tensors, const TapId& tap, RunTensor& made)
      : rules_(rules), tensors_(tensors), tap_(tap), made_(&made) {}

  const Rules& rules() const { return rules_; }
  const TapId& tap() const { return tap_; }
  const LayerSpec& layer() const { return rules_.model.layers[tap_.layer]; }
  const RunTensor& got() const { return made_ != nullptr ? *made_ : tensors_.at(index(tap_)); }
  /// What is computed is of a tap that the run did not hand in.
  bool derives() const { return made_ != nullptr; }
  /// A run under the plan has such a tap, seen or not; of somebody else's program, what its tensors allow.
  bool expects(const TapId& id) const { return rules_.taps.find(id) >= 0; }
  /// The run's own tensor of that kind in the tap's layer, or what is known of it.
  Input input(TapKind kind, int part = -1) const { return tensors_.as_double(index(at(kind, part))); }
  Input input(const TapId& id) const { return tensors_.as_double(index(id)); }
  Input input(TapKind kind, Range cols) const { return tensors_.as_double(index(at(kind, -1)), cols); }
  const ops::Matrix<std::int32_t>& choice() const { return tensors_.at(index(at(TapKind::router_choice, -1))).ids; }
  /// The residual stream that the layer starts from.
  Input stream() const;
  /// The columns of an input that one rank along the tap's axis multiplies with its part of a weight.
  Range part_of_weight(Weight weight) const;
  /// By expert, the slots of the choice that it was chosen for, in order.
  std::vector<std::vector<std::int64_t>> slots_by_expert() const;
  /// A comparison of the tap.
  Comparison comparison() const;

 private:
  TapId at(TapKind kind, int part) const { return {.layer = tap_.layer, .kind = kind, .part = part}; }
  std::size_t index(const TapId& id) const { return static_cast<std::size_t>(rules_.taps.find(id)); }

  const Rules& rules_;
  const RunTensors& tensors_;
  TapId tap_;
  RunTensor* made_ = nullptr;
};

/// A product to hold a tap to: rows of the tap, what they are computed from, and the columns of the weight.
struct Product {
  const Input& x;
  std::vector<std::int64_t> rows;  ///< of the tap, for each row of x; none: the same
  WeightSpec weight;
  Range cols;  ///< of the weight
  bool stored = true;
  std::vector<double> bias = {};  ///< added to every row before it is stored; or none
  /// So many roundings that the bias may spare: where others add it after the reduction that ours is added before.
  double spared = 0;
  double divisor = 1;  ///< of what is stored, and is then stored again
};

/// The values of a vector of the layer, as the format holds them; none where it has no such vector.
std::vector<double> vector_of(const Rule& rule, Weight weight, int expert = -1);
std::vector<double> vector_in(const Rule& rule, Weight weight, int expert, ops::Format format);

void compare_product(const Rule& rule, const Product& product, Comparison& comparison);
/// The same, each head rotated by its token's position.
void compare_rotated(const Rule& rule, const Product& product, Comparison& comparison);

Judged judge_attention(const Rule& rule);
/// Of latent attention in its absorbed form, of the tokens that are in it: queries of latents, what they weigh of
/// these, and the context; of the context the other tokens' too, which are in the plain form.
Judged judge_absorbed_queries(const Rule& rule);
Judged judge_latent_context(const Rule& rule);
Judged judge_context_in_forms(const Rule& rule);
/// Of a ring over cp: what the keys of one rank give, the log of what they weigh, and what the parts make together.
Judged judge_ring_context(const Rule& rule);
Judged judge_ring_lse(const Rule& rule);
Judged judge_ring_merge(const Rule& rule);

/// RMSNorm of blocks of `block` elements of each row by themselves.
Judged judge_norm(const Rule& rule, const Input& x, Weight weight, std::int64_t block);
/// Of the residual stream: RMSNorm, or the layer norm of a model that has biases of it.
Judged judge_stream_norm(const Rule& rule, const Input& x, Weight weight, Weight bias);
/// Of queries or of keys, inside each head or over all of them; and for the latter, a rank's sums of squares.
Judged judge_query_key_norm(const Rule& rule, TapKind projection, Weight weight);
Judged judge_squares(const Rule& rule);
/// Queries or keys from what is rotated in them, [tokens, heads * head_dim]; the rest is passed on.
Judged judge_rotation(const Rule& rule, const Input& before);
/// Latent attention: keys, unrotated, and values, from the taps that they are copied from.
Input latent_keys(const Rule& rule);
Input latent_values(const Rule& rule);
/// The sum of both, and that of x and the stored product of a multiplier and y; x times a multiplier.
Judged judge_sum(const Rule& rule, const Input& x, const Input& y);
Judged judge_addition_to_stream(const Rule& rule, const Input& x, const Input& y);
Judged judge_scaled(const Rule& rule, const Input& x, double factor);
/// Held to x itself.
Judged judge_copy(const Rule& rule, const Input& x);

Judged judge_router_scores(const Rule& rule);
Judged judge_choice(const Rule& rule);
/// The choice that every rounding of the scores leads to; none where that decides between two.
std::optional<ops::Matrix<std::int32_t>> clear_choice(const Rule& rule);
Judged judge_router_weights(const Rule& rule);
Judged judge_sparsemixer_weights(const Rule& rule);
/// The activation of an expert or of the MLP for all tokens.
Judged judge_activation(const Rule& rule, const Input& gate, const Input& up, double limit);
/// x times the sigmoid of its row's logit.
Judged judge_gated(const Rule& rule, const Input& x, const Input& logits);

}  // namespace shardproof::rounding
