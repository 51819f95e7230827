// What a reduction does to one element of several inputs.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

namespace shardproof::internal {

// Integers wrap around: their sums are taken in the unsigned type.
template <class T>
struct Sum {
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  }
};
template <class T>
struct Max {
  static T apply(T a, T b) { return a < b ? b : a; }
};
template <class T>
struct Min {
  static T apply(T a, T b) { return b < a ? b : a; }
};

template <class Acc, class T>
void convert(Acc* __restrict to, const T* __restrict from, std::size_t count) {
  if constexpr (std::is_same_v<Acc, T>) {
    std::memcpy(to, from, count * sizeof(T));
  } else {
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<Acc>(from[i]);
  }
}

// The left fold of one element of several inputs, in their order.
template <class Op, class Acc>
Acc fold(Acc sum) {
  return sum;
}
template <class Op, class Acc, class First, class... Rest>
Acc fold(Acc sum, First first, Rest... rest) {
  return fold<Op>(Op::apply(sum, static_cast<Acc>(first)), rest...);
}

}  // namespace shardproof::internal
