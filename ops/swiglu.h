// The gated activation (Shazeer 2020): out = stored(silu(gate) * up), silu(g) = g / (1 + exp(-g)).
// In `exact` exp(-g) is rounded to a multiple of kExpStep, with -g held at most kSiluExponentMax so that 1 + exp(-g)
// stays exact (silu(-20) is about -4e-8: what the clamp changes is far below the step of a stored value).
#pragma once

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

inline constexpr double kSiluExponentMax = 20;

/// gate, up, out [rows, cols]; out may be gate or up.
template <class T>
void swiglu(MatrixView<const T> gate, MatrixView<const T> up, Format format, MatrixView<T> out);

inline constexpr double kClampedSwigluAlpha = 1.702;

/// gpt-oss's: out = stored((u + 1) * (g / (1 + exp(-1.702 g)))), g = min(gate, limit), u = up held within
/// -limit..limit. The same exponential, and one operation of T a step.
template <class T>
void clamped_swiglu(MatrixView<const T> gate, MatrixView<const T> up, double limit, Format format, MatrixView<T> out);

/// 5 flops an element (negate, exp, add, divide, multiply); two reads and a write.
constexpr Cost swiglu_cost(Index rows, Index cols, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(cols);
  return {5 * elements, 3 * elements * bytes_per_element};
}

}  // namespace shardproof::ops
