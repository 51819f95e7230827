// Exponentials and fixed-order reductions over vectors.
//
// They are written in plain additions and multiplications, so where a file is built without contraction, as nearly all
// are, their bits are the same for every instruction set and compiler. `exponential` is always inlined: a file built
// with contraction must not lend its copy to others.
#pragma once

#include <array>
#include <limits>

#include "ops/format.h"
#include "ops/internal/rounding.h"
#include "ops/internal/simd.h"

namespace shardproof::ops::simd {

/// exp(x) to about one unit in the last place; exactly 1 at 0. 0 below exp(-86.6) (float) or exp(-708) (double), held
/// at exp(88.3) or exp(709.4) above; NaN stays NaN.
template <class T>
[[gnu::always_inline]] inline Vec<T> exponential(Vec<T> x);

// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts, the first short enough that n times
// it is exact. The magic number's sum leaves n in the low bits, from where a shift makes it an exponent.
template <>
[[gnu::always_inline]] inline Vec<float> exponential<float>(Vec<float> x) {
  const Vec<float> low = broadcast(-86.6F), high = broadcast(88.3F);
  const Vec<float> clamped = x < low ? low : (x > high ? high : x);
  const Vec<float> shifted = clamped * 1.44269504088896341F + 0x1.8p23F;
  const Vec<float> n = shifted - 0x1.8p23F;
  const Vec<float> r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  Vec<float> p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = (p * (r * r) + r) + 1.0F;
  p = from_bits<float>(to_bits<float>(p) + (to_bits<float>(shifted) << 23));
  p = x < low ? Vec<float>{} : p;
  return x == x ? p : x;
}

template <>
[[gnu::always_inline]] inline Vec<double> exponential<double>(Vec<double> x) {
  const Vec<double> low = broadcast(-708.0), high = broadcast(709.4);
  const Vec<double> clamped = x < low ? low : (x > high ? high : x);
  const Vec<double> shifted = clamped * 1.4426950408889634 + 0x1.8p52;
  const Vec<double> n = shifted - 0x1.8p52;
  const Vec<double> r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  // 1/k! for k = 13 .. 2: the remainder at |r| <= ln(2)/2 is under 2^-57.
  Vec<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (p * (r * r) + r) + 1.0;
  p = from_bits<double>(to_bits<double>(p) + (to_bits<double>(shifted) << 52));
  p = x < low ? Vec<double>{} : p;
  return x == x ? p : x;
}

/// exp(x) as the format has it: in `exact` rounded to a multiple of kExpStep. For x <= 0 that are multiples of
/// kActivationStep the exact value equals the rounded std::exp(x) (an exhaustive test holds it to that).
template <class T, bool kExact>
inline Vec<T> softmax_term(Vec<T> x) {
  if constexpr (kExact) {
    return round_to_multiple<T>(exponential<T>(x), static_cast<T>(kExpStep));
  } else {
    return exponential<T>(x);
  }
}

// Reductions keep kPartials<T> interleaved partial results, the same number for every vector width, and fold them in
// halves: element i goes to partial i mod kPartials.
template <class T>
inline constexpr Index kPartials = 128 / static_cast<Index>(sizeof(T));

template <class T>
class Partials {
 public:
  explicit Partials(T initial) { vectors_.fill(broadcast<T>(initial)); }

  Vec<T>& operator[](Index index) { return vectors_[static_cast<std::size_t>(index)]; }
  static constexpr Index vectors() { return kPartials<T> / kLanes<T>; }

  /// combine(a, b) of two vectors or two elements; partial i meets partial i + kPartials / 2, and so on by halves.
  template <class F>
  T fold(F combine) const {
    auto vectors = vectors_;
    for (std::size_t half = vectors.size() / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) vectors[i] = combine(vectors[i], vectors[i + half]);
    }
    std::array<T, static_cast<std::size_t>(kLanes<T>)> lanes;
    std::memcpy(lanes.data(), &vectors[0], sizeof(lanes));
    for (std::size_t half = lanes.size() / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) lanes[i] = combine(lanes[i], lanes[i + half]);
    }
    return lanes[0];
  }

 private:
  std::array<Vec<T>, static_cast<std::size_t>(kPartials<T> / kLanes<T>)> vectors_;
};

/// The sum of f(in[i]...) for i < count; f of zeros must be zero.
template <class T, class F, class... In>
inline T sum_of(Index count, F f, const In*... in) {
  Partials<T> partials(T{0});
  Index i = 0;
  for (; i + kPartials<T> <= count; i += kPartials<T>) {
    for (Index v = 0; v < Partials<T>::vectors(); ++v) partials[v] += f(load<T>(in + i + v * kLanes<T>)...);
  }
  for (Index v = 0; i < count; ++v, i += kLanes<T>) {
    partials[v] += count - i >= kLanes<T> ? f(load<T>(in + i)...) : f(load_partial<T>(in + i, count - i)...);
  }
  return partials.fold([](auto a, auto b) { return a + b; });
}

/// The largest of in[i], i < count (NaN ignored); minus infinity for none.
template <class T>
inline T largest_of(Index count, const T* in) {
  Partials<T> partials(-std::numeric_limits<T>::infinity());
  Index i = 0;
  for (; i + kPartials<T> <= count; i += kPartials<T>) {
    for (Index v = 0; v < Partials<T>::vectors(); ++v) {
      const Vec<T> value = load<T>(in + i + v * kLanes<T>);
      partials[v] = value > partials[v] ? value : partials[v];
    }
  }
  T largest = partials.fold([](auto a, auto b) { return b > a ? b : a; });
  for (const T value : std::span<const T>(in + i, in + count)) largest = value > largest ? value : largest;
  return largest;
}

}  // namespace shardproof::ops::simd
