// Exponentials and fixed-order reductions over vectors.
//
// They are written in plain additions and multiplications, so where a file is built without contraction, as nearly all
// are, their bits are the same for every instruction set and compiler. `exponential` and `exponentials` are always
// inlined: a file built with contraction must not lend its copy to others.
#pragma once

#include <array>
#include <iterator>
#include <limits>
#include <tuple>

#include "ops/format.h"
#include "ops/internal/rounding.h"
#include "ops/internal/simd.h"

namespace shardproof::ops::simd {

// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts, the first short enough that n times
// it is exact. The magic number's sum leaves n in the low bits, from where a shift makes it the exponent of 2^n.
template <class T>
struct ExponentialOf;

template <>
struct ExponentialOf<float> {
  static constexpr float kLow = -86.6F, kHigh = 88.3F, kNothing = -88.03F;  // of which 2^n is 0
  static constexpr std::uint32_t kOne = 0x3f800000;
  static constexpr float kLog2E = 1.44269504088896341F, kMagic = 0x1.8p23F;
  static constexpr float kLn2 = 0.693359375F, kLn2Rest = -2.12194440e-4F;
  static constexpr int kExponent = 23;
  static constexpr float kPolynomial[] = {1.9875691500e-4F, 1.3981999507e-3F, 8.3334519073e-3F,
                                          4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F};
};

template <>
struct ExponentialOf<double> {
  static constexpr double kLow = -708.0, kHigh = 709.4, kNothing = -709.1;
  static constexpr std::uint64_t kOne = 0x3ff0000000000000;
  static constexpr double kLog2E = 1.4426950408889634, kMagic = 0x1.8p52;
  static constexpr double kLn2 = 6.93147180369123816490e-01, kLn2Rest = 1.90821492927058770002e-10;
  static constexpr int kExponent = 52;
  // 1/k! for k = 13 .. 2: the remainder at |r| <= ln(2)/2 is under 2^-57.
  static constexpr double kPolynomial[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
                                           1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
                                           1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        0.5};
};

/// The steps of one exponential.
template <class T>
struct ExponentialSteps {
  using Of = ExponentialOf<T>;
  Vec<T> r, shifted, p;

  [[gnu::always_inline]] void hold(Vec<T> x) {
    r = x > broadcast(Of::kHigh) ? broadcast(Of::kHigh) : x;
    r = r < broadcast(Of::kLow) ? broadcast(Of::kNothing) : r;
  }
  [[gnu::always_inline]] void reduce() {
    shifted = r * Of::kLog2E + Of::kMagic;
    const Vec<T> n = shifted - Of::kMagic;
    r = (r - n * Of::kLn2) - n * Of::kLn2Rest;
  }
  [[gnu::always_inline]] void begin_sum() { p = r * Of::kPolynomial[0] + Of::kPolynomial[1]; }
  [[gnu::always_inline]] void add_term(std::size_t term) { p = p * r + Of::kPolynomial[term]; }
  [[gnu::always_inline]] Vec<T> result() {
    p = (p * (r * r) + r) + T{1};
    // An exact product, whatever it is contracted with. NaN is one by now, whatever its bits make of 2^n.
    return p * from_bits<T>((to_bits<T>(shifted) << Of::kExponent) + Of::kOne);
  }
};

/// exp(x) to about one unit in the last place; exactly 1 at 0. 0 below exp(-86.6) (float) or exp(-708) (double), held
/// at exp(88.3) or exp(709.4) above; NaN stays NaN.
template <class T>
[[gnu::always_inline]] inline Vec<T> exponential(Vec<T> x) {
  ExponentialSteps<T> steps;
  steps.hold(x);
  steps.reduce();
  steps.begin_sum();
  for (std::size_t term = 2; term < std::size(ExponentialOf<T>::kPolynomial); ++term) steps.add_term(term);
  return steps.result();
}

/// The same of several vectors, in place and side by side: the chain of one is long enough to fill the processor's
/// queue before the next begins.
template <class T, std::size_t kVectors>
[[gnu::always_inline]] inline void exponentials(Vec<T> (&x)[kVectors]) {
  static_assert(kVectors > 1);
  ExponentialSteps<T> steps[kVectors];
  SHARDPROOF_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) steps[v].hold(x[v]);
  SHARDPROOF_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) steps[v].reduce();
  SHARDPROOF_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) steps[v].begin_sum();
  for (std::size_t term = 2; term < std::size(ExponentialOf<T>::kPolynomial); ++term) {
    SHARDPROOF_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) steps[v].add_term(term);
  }
  SHARDPROOF_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) x[v] = steps[v].result();
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
  explicit Partials(T initial) {
    SHARDPROOF_UNROLL
    for (Vec<T>& vector : vectors_) vector = broadcast<T>(initial);
  }

  Vec<T>& operator[](Index index) { return vectors_[static_cast<std::size_t>(index)]; }
  static constexpr Index vectors() { return kPartials<T> / kLanes<T>; }

  /// combine(a, b) of two vectors or two elements; partial i meets partial i + kPartials / 2, and so on by halves.
  template <class F>
  T fold(F combine) const {
    // Vector by vector: in halves of vectors, as the compiler copies an array, each would wait to be read whole.
    constexpr std::size_t kVectors = std::tuple_size_v<decltype(vectors_)>;
    Vec<T> vectors[kVectors];
    SHARDPROOF_UNROLL
    for (std::size_t i = 0; i < kVectors; ++i) vectors[i] = vectors_[i];
    SHARDPROOF_UNROLL
    for (std::size_t half = kVectors / 2; half > 0; half /= 2) {
      SHARDPROOF_UNROLL
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
