// Store rounding of a vector: bit arithmetic and selects, no branch.
#pragma once

#include <limits>

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

/// To `kDigits` significant bits, ties to even, for a format whose normal numbers begin at 2^kMinExponent and whose
/// largest is below 2^kMaxExponent.
template <class T, int kDigits, int kMinExponent, int kMaxExponent>
inline Vec<T> round_to_digits(Vec<T> value) {
  constexpr int kDropped = std::numeric_limits<T>::digits - kDigits;
  constexpr auto kPower = [](int exponent) {
    T result = 1;
    for (; exponent > 0; --exponent) result *= 2;
    for (; exponent < 0; ++exponent) result /= 2;
    return result;
  };
  constexpr T kMinNormal = kPower(kMinExponent);
  constexpr T kLimit = kPower(kMaxExponent - 1);  // doubled below: 2^kMaxExponent may not be finite in T
  constexpr T kSubnormalStep = kPower(kMinExponent - kDigits + 1);
  constexpr Bits<T> kHalf = (Bits<T>{1} << (kDropped - 1)) - 1;
  constexpr Bits<T> kKeep = ~((Bits<T>{1} << kDropped) - 1);

  const Vec<T> magnitude = absolute<T>(value);
  const Vec<Bits<T>> bits = to_bits<T>(magnitude);
  const Vec<T> normal = from_bits<T>((bits + kHalf + ((bits >> kDropped) & 1)) & kKeep);
  const Vec<T> infinity = broadcast<T>(std::numeric_limits<T>::infinity());
  Vec<T> rounded = normal * T{0.5} < kLimit ? normal : infinity;
  if constexpr (kSubnormalStep / std::numeric_limits<T>::epsilon() >= std::numeric_limits<T>::min()) {
    // Below the normal numbers the step is constant.
    rounded = magnitude < kMinNormal ? round_to_multiple<T>(magnitude, kSubnormalStep) : rounded;
  }
  rounded = copy_sign<T>(rounded, value);
  return value == value ? rounded : value;
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
