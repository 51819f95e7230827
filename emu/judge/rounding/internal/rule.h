// One application of a rule: the tap, its inputs and its weights.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/judge/rounding/op_rules.h"
#include "emu/reference/math.h"

namespace shardproof::rounding {

class Rule {
 public:
  Rule(const Rules& rules, const RunTensors& tensors, const TapId& tap) : rules_(rules), tensors_(tensors), tap_(tap) {}

  const Rules& rules() const { return rules_; }
  const TapId& tap() const { return tap_; }
  const LayerSpec& layer() const { return rules_.model.layers[tap_.layer]; }
  const RunTensor& got() const { return tensors_.at(index(tap_)); }
  /// The run's own tensor of that kind in the tap's layer.
  reference::Tensor input(TapKind kind, int part = -1) const { return tensors_.as_double(index(at(kind, part))); }
  reference::Tensor input(const TapId& id) const { return tensors_.as_double(index(id)); }
  reference::Tensor input(TapKind kind, Range cols) const { return tensors_.as_double(index(at(kind, -1)), cols); }
  const ops::Matrix<std::int32_t>& choice() const { return tensors_.at(index(at(TapKind::router_choice, -1))).ids; }
  /// The residual stream that the layer starts from.
  reference::Tensor stream() const;
  /// The columns of an input that one rank along the tap's axis multiplies with its part of a weight.
  Range part_of_weight(Weight weight) const;
  /// What the chosen expert makes goes into these slots.
  std::vector<std::int64_t> slots_of(int expert) const;
  /// A comparison of the tap.
  Comparison comparison() const;

 private:
  TapId at(TapKind kind, int part) const { return {.layer = tap_.layer, .kind = kind, .part = part}; }
  std::size_t index(const TapId& id) const { return static_cast<std::size_t>(rules_.taps.find(id)); }

  const Rules& rules_;
  const RunTensors& tensors_;
  TapId tap_;
};

/// A product to hold a tap to: rows of the tap, what they are computed from, and the columns of the weight.
struct Product {
  const reference::Tensor& x;
  std::vector<std::int64_t> rows;  ///< of the tap, for each row of x; none: the same
  WeightSpec weight;
  Range cols;  ///< of the weight
  bool stored = true;
  std::vector<double> bias = {};  ///< added to every row before it is stored; or none
};

/// The values of a vector of the layer, as the format holds them; none where it has no such vector.
std::vector<double> vector_of(const Rule& rule, Weight weight, int expert = -1);

void compare_product(const Rule& rule, const Product& product, Comparison& comparison);
/// The same, each head rotated by its token's position.
void compare_rotated(const Rule& rule, const Product& product, Comparison& comparison);

Judged judge_attention(const Rule& rule);
/// Of a ring over cp: what the keys of one rank give, the log of what they weigh, and what the parts make together.
Judged judge_ring_context(const Rule& rule);
Judged judge_ring_lse(const Rule& rule);
Judged judge_ring_merge(const Rule& rule);

/// RMSNorm of blocks of `block` elements of each row by themselves.
Judged judge_norm(const Rule& rule, const reference::Tensor& x, Weight weight, std::int64_t block);
/// Queries or keys from what is rotated in them, [tokens, heads * head_dim]; the rest is passed on.
Judged judge_rotation(const Rule& rule, const reference::Tensor& before);
/// Latent attention: keys, unrotated, and values, from the taps that they are copied from.
reference::Tensor latent_keys(const Rule& rule);
reference::Tensor latent_values(const Rule& rule);
/// Held to x itself.
Judged judge_copy(const Rule& rule, const reference::Tensor& x);

Judged judge_router_scores(const Rule& rule);
Judged judge_choice(const Rule& rule);
Judged judge_router_weights(const Rule& rule);
/// The activation of an expert or of the MLP for all tokens.
Judged judge_activation(const Rule& rule, const reference::Tensor& gate, const reference::Tensor& up, double limit);
/// x times the sigmoid of its row's logit.
Judged judge_gated(const Rule& rule, const reference::Tensor& x, const reference::Tensor& logits);

}  // namespace shardproof::rounding
