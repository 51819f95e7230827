// Vectors of the build's width over compiler vector extensions: one source for every instruction set.
//
// A kernel is written once over Vec<T>. The tail of a row goes through the same code on a vector padded with zeros, so
// an element's value never depends on where in the row it stands.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/matrix.h"

// SHARDPROOF_UNROLL goes before a loop over the registers of a tile: left as a loop, its array would live in memory.
// SHARDPROOF_UNROLL_STEPS goes before the loop along k of a tile: with fewer rounds, the processor foresees its end.
#if defined(__clang__)
#define SHARDPROOF_UNROLL _Pragma("clang loop unroll(full)")
#define SHARDPROOF_UNROLL_STEPS _Pragma("clang loop unroll_count(8)")
#else
#define SHARDPROOF_UNROLL _Pragma("GCC unroll 16")
#define SHARDPROOF_UNROLL_STEPS _Pragma("GCC unroll 8")
#endif

namespace shardproof::ops::simd {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
inline constexpr Index kLanes = kVectorBytes / static_cast<Index>(sizeof(T));

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

template <class T>
struct VectorOf {
  // `may_alias` and `aligned` let it be read from any address of T.
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <class T>
inline void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

/// The first `count` < kLanes elements, zeros after them.
template <class T>
inline Vec<T> load_partial(const T* from, Index count) {
  Vec<T> result{};
  std::memcpy(&result, from, static_cast<std::size_t>(count) * sizeof(T));
  return result;
}

template <class T>
inline void store_partial(T* to, Vec<T> value, Index count) {
  std::memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // minus zero leaves every value as it is, -0 too
}

template <class T>
inline Vec<Bits<T>> to_bits(Vec<T> value) {
  return std::bit_cast<Vec<Bits<T>>>(value);
}

template <class T>
inline Vec<T> from_bits(Vec<Bits<T>> value) {
  return std::bit_cast<Vec<T>>(value);
}

template <class T>
inline Vec<T> absolute(Vec<T> value) {
  constexpr Bits<T> kMask = static_cast<Bits<T>>(~Bits<T>{0}) >> 1;
  return from_bits<T>(to_bits<T>(value) & kMask);
}

/// The magnitude of one value with the sign of another.
template <class T>
inline Vec<T> copy_sign(Vec<T> magnitude, Vec<T> sign) {
  constexpr Bits<T> kMask = static_cast<Bits<T>>(~Bits<T>{0}) >> 1;
  return from_bits<T>((to_bits<T>(magnitude) & kMask) | (to_bits<T>(sign) & ~kMask));
}

template <class T>
inline Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

/// out[i] = f(in[i]...) for i < count, vector by vector; f takes and returns Vec<T>. Before the vector at i, ask(i)
/// asks the caches for what will be read later.
template <class T, class Ask, class F, class... In>
inline void transform_asking(Index count, T* out, Ask ask, F f, const In*... in) {
  Index i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    ask(i);
    store<T>(out + i, f(load<T>(in + i)...));
  }
  if (i < count) store_partial<T>(out + i, f(load_partial<T>(in + i, count - i)...), count - i);
}

/// The same for arrays that are read once, from end to end.
template <class T, class F, class... In>
inline void transform(Index count, T* out, F f, const In*... in) {
  // Asked for by hand: the processor's own prefetcher stops at every page, and a long f leaves few loads in flight.
  constexpr Index kAhead = 2048 / static_cast<Index>(sizeof(T));
  const auto ask = [&](Index i) {
    const Index ahead = std::min(i + kAhead, count - 1);
    (__builtin_prefetch(in + ahead), ...);
  };
  transform_asking<T>(count, out, ask, f, in...);
}

/// Calls f(row count as a flat run, pointers...) so that contiguous operands go as one run and strided ones row by row.
template <class Out, class F, class... In>
inline void for_each_run(MatrixView<Out> out, F f, In... in) {
  if (out.rows == 0 || out.cols == 0) return;
  if (out.contiguous() && (in.contiguous() && ...)) {
    f(out.rows * out.cols, out.data, in.data...);
    return;
  }
  for (Index row = 0; row < out.rows; ++row) f(out.cols, out.row(row).data(), in.row(row).data()...);
}

}  // namespace shardproof::ops::simd
