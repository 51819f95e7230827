// Store rounding of a vector: bit arithmetic and selects, no branch.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <bit>
#include <limits>
#include <type_traits>

#include "ops/format.h"
#include "ops/internal/simd.h"

namespace shardproof::ops::simd {

/// To the nearest multiple of `step` (a power of two), ties to even; a zero is always +0.
template <class T>
inline Vec<T> round_to_multiple(Vec<T> value, T step) {
  // Adding the power of two whose last place is `step` drops the bits below it; above that power nothing is below.
  const T magic = step / std::numeric_limits<T>::epsilon();
  const Vec<T> magnitude = absolute<T>(value);
  const Vec<T> rounded = (magnitude + magic) - magic;
  return magnitude < magic ? copy_sign<T>(rounded, value) + T{0} : value;
}

/// To `kDigits` significant bits, ties to even, for a format narrower than T whose normal numbers begin at
/// 2^kMinExponent (the step is constant below) and whose largest is below 2^kMaxExponent (infinity from there).
template <class T, int kDigits, int kMinExponent, int kMaxExponent>
inline Vec<T> round_to_digits(Vec<T> value) {
  constexpr auto kPower = [](int exponent) {
    T result = 1;
    for (; exponent > 0; --exponent) result *= 2;
    for (; exponent < 0; ++exponent) result /= 2;
    return result;
  };
  constexpr int kFractionBits = std::numeric_limits<T>::digits - 1;
  constexpr Bits<T> kExponent = static_cast<Bits<T>>((sizeof(T) == 4 ? 0xffULL : 0x7ffULL) << kFractionBits);
  constexpr Bits<T> kShift = static_cast<Bits<T>>(std::numeric_limits<T>::digits - kDigits) << kFractionBits;

  // A power of two whose last place is the step at the value's exponent: adding it drops the bits below.
  const Vec<T> magnitude = absolute<T>(value);
  const Vec<T> low = broadcast<T>(kPower(kMinExponent)), high = broadcast<T>(kPower(kMaxExponent));
  const Vec<T> held = magnitude < low ? low : (magnitude > high ? high : magnitude);
  const Vec<T> magic = from_bits<T>((to_bits<T>(held) & kExponent) + kShift);
  const Vec<T> rounded = (magnitude + magic) - magic;
  return copy_sign<T>(rounded >= high ? broadcast<T>(std::numeric_limits<T>::infinity()) : rounded, value);
}

template <class T>
inline Vec<T> round_bf16(Vec<T> value) {
  if constexpr (sizeof(T) == 4) {
    // bf16 has float's exponents: a carry makes the next power of two, and in the end infinity.
    const Vec<Bits<T>> bits = to_bits<T>(value);
    const Vec<T> rounded = from_bits<T>((bits + 0x7fff + ((bits >> 16) & 1)) & static_cast<Bits<T>>(0xffff0000));
    return value == value ? rounded : value;
  } else {
    return round_to_digits<T, 8, -126, 128>(value);
  }
}

template <class T>
inline Vec<T> round_fp16(Vec<T> value) {
#if defined(__F16C__)
  // The instruction set's own conversion, there and back: the same result in a third of the time.
  if constexpr (std::is_same_v<T, float> && kVectorBytes == 32) {
    return std::bit_cast<Vec<T>>(
        _mm256_cvtph_ps(_mm256_cvtps_ph(std::bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT)));
  }
#endif
  return round_to_digits<T, 11, -14, 16>(value);
}

struct KeepAll {
  template <class V>
  V operator()(V value) const {
    return value;
  }
};

/// Calls f(rounding), rounding a function object from Vec<T> to Vec<T>, so that the format is chosen once per op.
template <class T, class F>
inline decltype(auto) with_rounding(Format format, F f) {
  switch (format) {
    case Format::bf16:
      return f([](Vec<T> value) { return round_bf16<T>(value); });
    case Format::fp16:
      return f([](Vec<T> value) { return round_fp16<T>(value); });
    case Format::exact:
      return f([](Vec<T> value) { return round_to_multiple<T>(value, static_cast<T>(kActivationStep)); });
    case Format::fp32:
      if constexpr (sizeof(T) == 8) {
        return f([](Vec<T> value) { return round_to_digits<T, 24, -126, 128>(value); });
      }
      break;
    case Format::fp64:
      break;
  }
  return f(KeepAll{});
}

}  // namespace shardproof::ops::simd
