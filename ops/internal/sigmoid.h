// The logistic function.
#pragma once

#include "ops/format.h"
#include "ops/internal/exact_exp.h"
#include "ops/internal/math.h"

namespace shardproof::ops::simd {

/// 1 / (1 + exp(-x)), one operation of T a step.
template <class T>
inline Vec<T> logistic(Vec<T> x) {
  return T{1} / (exponential<T>(-x) + T{1});
}

/// The same of a single value; in `exact`, with its exponential, rounded to a multiple of kExpStep.
template <class T>
T sigmoid(T x, Format format) {
  if (format == Format::exact) {
    static const ExactExponential kExponential;
    const double score = 1.0 / (1.0 + kExponential(-static_cast<double>(x)));
    return static_cast<T>(round_to_multiple<double>(broadcast(score), kExpStep)[0]);
  }
  return logistic<T>(broadcast<T>(x))[0];
}

}  // namespace shardproof::ops::simd
