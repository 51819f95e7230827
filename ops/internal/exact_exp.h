// exp(x) of the `exact` format where x may be positive.
#pragma once

namespace shardproof::ops {

/// std::exp(x) rounded to a multiple of kExpStep, x held at most kSiluExponentMax. Multiples of kActivationStep are
/// looked up in a table of 2^15 entries that std::exp fills once: near the upper end a unit in the last place of exp
/// is more than a thousandth of the step, so another implementation of exp would not round to the same multiple.
class ExactExponential {
 public:
  ExactExponential();
  double operator()(double x) const;

 private:
  const double* table_;
};

}  // namespace shardproof::ops
