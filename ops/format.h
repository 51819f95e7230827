// Numeric formats: how values are rounded where a GPU kernel would store its result.
//
// An op computes in its scalar (float, or double for fp64 and exact) and rounds once per stored value. The rounding is
// the format:
//   fp64, fp32   none (the scalar already has that format)
//   bf16, fp16   to the nearest representable value, ties to even; fp16 overflows to infinity, subnormals are kept
//   exact        to the nearest multiple of kActivationStep, ties to even; a zero is always +0
//
// In `exact`, stored activations and weights are dyadic rationals on a coarse grid, so that every sum of products of
// them is exact in double in any order; a partial sum is therefore not rounded before it is reduced. The non-linear
// functions round their exponentials to multiples of kExpStep, so that sums of exponentials are exact too.
#pragma once

#include <optional>
#include <span>
#include <string_view>

namespace shardproof::ops {

enum class Format { fp64, fp32, bf16, fp16, exact };

inline constexpr double kActivationStep = 0x1p-10;
inline constexpr double kExpStep = 0x1p-20;

/// "fp64", "fp32", "bf16", "fp16", "exact".
std::string_view to_string(Format format);
std::optional<Format> parse_format(std::string_view name);

/// The format computes in double (fp64, exact); otherwise in float.
constexpr bool computes_in_double(Format format) {
  return format == Format::fp64 || format == Format::exact;
}

/// Bytes of the scalar that the format computes in.
constexpr int scalar_bytes(Format format) {
  return computes_in_double(format) ? 8 : 4;
}

/// Bytes that one stored element takes on the device (exact counts as the double it is kept in).
constexpr int bytes_per_element(Format format) {
  return computes_in_double(format) ? 8 : format == Format::fp32 ? 4 : 2;
}

/// The unit roundoff u of a stored value: 2^-53, 2^-24, 2^-8 (bf16), 2^-11 (fp16); 0 for exact.
double unit_roundoff(Format format);

/// The value that a kernel would store. T is float or double.
template <class T>
T stored(T value, Format format);

/// Rounds every element in place, as `stored` does.
template <class T>
void round_to(std::span<T> values, Format format);

/// Rounds a partial sum that is still to be reduced across ranks: as round_to, but `exact` keeps every bit.
template <class T>
void round_partial(std::span<T> values, Format format);

}  // namespace shardproof::ops
