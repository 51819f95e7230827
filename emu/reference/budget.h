// The bit budget of `exact`: what each of the reference's sums needs of the 53 bits of a double.
//
// A sum of multiples of `step` whose magnitudes add up to less than 2^53 * step is exact, and so is each part of it, in
// any order: every partial sum is an integer below 2^53, times the step. The magnitudes are bounded by what goes in:
//
//   sum                                            step          magnitudes add up to at most
//   x W^T, a linear layer                          2^-10 2^-16   max |x| * largest row sum of |W|, + 2^10 with a bias
//   x^2, RMSNorm                                   2^-10 2^-10   width * max |x|^2
//   x, the mean of a layer norm                    2^-10         width * max |x|
//   x cos - y sin, RoPE                            2^-10 2^-20   2 max |x| * amplitude
//   q . k, attention scores                        2^-10 2^-10   head_dim * max |q| * max |k|
//   p, the softmax's denominator                   2^-20         keys (p <= 1)
//   p v, attention                                 2^-20 2^-10   keys * max |v|
//   K^T q, V l of latent attention absorbed        2^-10 2^-16   as x W^T, of a head's columns of K and rows of V
//   q' . [c, r], absorbed, and p c                 as q . k with rank + turned elements, and as p v
//   1 + exp(-gate), SiLU and sigmoids              2^-20         1 + exp(the largest -gate, held in [-40, 20])
//   exp or sigmoid, the router's denominator       2^-20         experts
//   weight * output, over the experts of a token   2^-10 2^-10   largest row sum of weights * max |output|
//   x + y, the residual                            2^-10         max |x| + max |y|
//
// Checked on the unsharded sums, this holds for the run under test as well. A sharded sum adds the same products in
// another order or part of them (a rank's partial sum over tp or etp), and what goes in is what the reference has, bit
// for bit, up to the first tap that diverges.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "emu/reference/math.h"

namespace shardproof::reference {

/// The multiple of which the weights of linear layers and of the embedding are.
inline constexpr double kWeightStep = 0x1p-16;
/// What a sum allows for a bias that joins it.
inline constexpr double kLargestBias = 0x1p10;
/// Significant bits of a double.
inline constexpr int kBudgetBits = 53;
/// What bits_needed() says of a sum that is not finite.
inline constexpr int kUnboundedBits = 9999;

/// The bits of the integer bound / step (0 of zero): a sum of multiples of `step` bounded by `bound` is exact when they
/// are at most kBudgetBits.
int bits_needed(double bound, double step);

/// max |x|; NaN when a value is.
double largest_magnitude(std::span<const double> values);
/// The largest sum of magnitudes of a row of `cols` values; NaN when a value is.
double largest_row_sum(std::span<const double> values, std::int64_t cols);

/// A tensor of the model: "attention.q" of a layer, or "logits" of none (-1).
struct TapName {
  int layer = -1;
  std::string_view name;
};
/// "layer.3.attention.q", "logits".
std::string to_string(const TapName& tap);

/// Receives a sum: the tap that it goes into, which sum it is, its bits.
using SumSink = std::function<void(const TapName& tap, std::string_view sum, int bits)>;

/// Tells a sink what the sums of each operation need. Without a sink it does nothing.
class SumRecorder {
 public:
  explicit SumRecorder(SumSink sink) : sink_(std::move(sink)) {}

  /// With `more` for what else is added. Throws std::invalid_argument when a weight is finite and no multiple of
  /// kWeightStep.
  void linear(const TapName& tap, std::string_view sum, const Tensor& x, std::span<const double> w,
              double more = 0) const;
  /// That a bias is on the grid, and no larger than kLargestBias: throws std::invalid_argument, as above.
  void bias(const TapName& tap, std::span<const double> bias) const;
  void squares(const TapName& tap, const Tensor& x) const;
  void mean(const TapName& tap, const Tensor& x) const;
  void rotation(const TapName& tap, const Tensor& x, double amplitude) const;
  void attention(const TapName& tap, const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t head_dim,
                 std::span<const std::int64_t> lengths, bool sinks) const;
  /// Of an exponential of `slope` times the negative gate.
  void silu(const TapName& tap, const Tensor& gate, double slope) const;
  void routing(const TapName& tap, std::int64_t experts) const;
  void combination(const TapName& tap, const Tensor& weights, const Tensor& outputs) const;
  void addition(const TapName& tap, const Tensor& x, const Tensor& y) const;

 private:
  void tell(const TapName& tap, std::string_view sum, double bound, double step) const {
    sink_(tap, sum, bits_needed(bound, step));
  }

  SumSink sink_;
};

}  // namespace shardproof::reference
