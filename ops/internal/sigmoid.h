// The logistic function of single values.
#pragma once

#include "ops/format.h"
#include "ops/internal/exact_exp.h"
#include "ops/internal/math.h"

namespace shardproof::ops::simd {

/// 1 / (1 + exp(-x)), one operation of T a step; in `exact`, with its exponential, rounded to a multiple of kExpStep.
template <class T>
T sigmoid(T x, Format format) {
  if (format == Format::exact) {
    static const ExactExponential kExponential;
    const double score = 1.0 / (1.0 + kExponential(-static_cast<double>(x)));
    return static_cast<T>(round_to_multiple<double>(broadcast(score), kExpStep)[0]);
  }
  return (T{1} / (exponential<T>(broadcast<T>(-x)) + T{1}))[0];
}

}  // namespace shardproof::ops::simd
