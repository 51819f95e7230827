// The additions under the evaluator of orders: one pass over a block for several inputs, in their order.
#pragma once

#include <cstddef>
#include <utility>

#include "collectives/internal/element_ops.h"

namespace shardproof::internal {

// top = ((top + a) + b) + ..., one load and store of the partial sum for several inputs.
template <class Op, class Acc, class T, std::size_t... K>
void add_some(Acc* __restrict top, const T* const* inputs, std::size_t count, std::index_sequence<K...>) {
  const T* const input[] = {inputs[K]...};
  for (std::size_t e = 0; e < count; ++e) top[e] = fold<Op>(top[e], input[K][e]...);
}
// top = (a + b) + ...
template <class Op, class Acc, class T, std::size_t... K>
void load_some(Acc* __restrict top, const T* const* inputs, std::size_t count, std::index_sequence<K...>) {
  const T* const input[] = {inputs[0], inputs[K + 1]...};
  for (std::size_t e = 0; e < count; ++e) top[e] = fold<Op>(static_cast<Acc>(input[0][e]), input[K + 1][e]...);
}

template <class Op, class Acc, class T>
void add_inputs(Acc* top, const T* const* inputs, std::size_t inputs_count, std::size_t count) {
  for (; inputs_count >= 16; inputs += 16, inputs_count -= 16) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<16>());
  }
  if (inputs_count >= 8) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<8>());
    inputs += 8;
    inputs_count -= 8;
  }
  if (inputs_count >= 4) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<4>());
    inputs += 4;
    inputs_count -= 4;
  }
  if (inputs_count == 3) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<3>());
  } else if (inputs_count == 2) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<2>());
  } else if (inputs_count == 1) {
    add_some<Op>(top, inputs, count, std::make_index_sequence<1>());
  }
}

// top = top + ((a + b) + ...): a short subtree joins the sum without being stored.
template <class Op, class Acc, class T, std::size_t... K>
void merge_some(Acc* __restrict top, const T* const* inputs, std::size_t count, std::index_sequence<K...>) {
  const T* const input[] = {inputs[0], inputs[K + 1]...};
  for (std::size_t e = 0; e < count; ++e) {
    top[e] = Op::apply(top[e], fold<Op>(static_cast<Acc>(input[0][e]), input[K + 1][e]...));
  }
}

constexpr std::size_t kMergeable = 8;

template <class Op, class Acc, class T, std::size_t... N>
void merge_inputs(Acc* top, const T* const* inputs, std::size_t inputs_count, std::size_t count,
                  std::index_sequence<N...>) {
  // One of merge_some for 1, 2, ... inputs.
  (void)((inputs_count == N + 1 && (merge_some<Op>(top, inputs, count, std::make_index_sequence<N>()), true)) || ...);
}
template <class Op, class Acc, class T>
void merge_inputs(Acc* top, const T* const* inputs, std::size_t inputs_count, std::size_t count) {
  merge_inputs<Op>(top, inputs, inputs_count, count, std::make_index_sequence<kMergeable>());
}

// to = ((a + b) + ...) + ((c + d) + ...), or, onto what is there, to = to + that: two short subtrees and what joins
// them, without being stored in between.
template <class Op, bool kOnto, class Acc, class T, std::size_t... K, std::size_t... L>
void join_some(Acc* __restrict to, const T* const* first, const T* const* second, std::size_t count,
               std::index_sequence<K...>, std::index_sequence<L...>) {
  const T* const a[] = {first[0], first[K + 1]...};
  const T* const b[] = {second[0], second[L + 1]...};
  for (std::size_t e = 0; e < count; ++e) {
    const Acc sum = Op::apply(fold<Op>(static_cast<Acc>(a[0][e]), a[K + 1][e]...),
                              fold<Op>(static_cast<Acc>(b[0][e]), b[L + 1][e]...));
    to[e] = kOnto ? Op::apply(to[e], sum) : sum;
  }
}

constexpr std::size_t kFirstJoinable = 2;
constexpr std::size_t kSecondJoinable = 3;

template <class Op, bool kOnto, std::size_t kFirst, class Acc, class T>
void join_second(Acc* to, const T* const* first, const T* const* second, std::size_t seconds, std::size_t count) {
  constexpr std::make_index_sequence<kFirst - 1> kRest;
  if (seconds == 1) return join_some<Op, kOnto>(to, first, second, count, kRest, std::make_index_sequence<0>());
  if (seconds == 2) return join_some<Op, kOnto>(to, first, second, count, kRest, std::make_index_sequence<1>());
  join_some<Op, kOnto>(to, first, second, count, kRest, std::make_index_sequence<2>());
}
template <class Op, bool kOnto, class Acc, class T>
void join_inputs(Acc* to, const T* const* first, std::size_t firsts, const T* const* second, std::size_t seconds,
                 std::size_t count) {
  if (firsts == 1) return join_second<Op, kOnto, 1>(to, first, second, seconds, count);
  join_second<Op, kOnto, 2>(to, first, second, seconds, count);
}

// The same from nothing.
template <class Op, class Acc, class T>
void sum_inputs(Acc* top, const T* const* inputs, std::size_t inputs_count, std::size_t count) {
  if (inputs_count >= 16) {
    load_some<Op>(top, inputs, count, std::make_index_sequence<15>());
    add_inputs<Op>(top, inputs + 16, inputs_count - 16, count);
  } else if (inputs_count >= 8) {
    load_some<Op>(top, inputs, count, std::make_index_sequence<7>());
    add_inputs<Op>(top, inputs + 8, inputs_count - 8, count);
  } else if (inputs_count >= 4) {
    load_some<Op>(top, inputs, count, std::make_index_sequence<3>());
    add_inputs<Op>(top, inputs + 4, inputs_count - 4, count);
  } else if (inputs_count >= 2) {
    load_some<Op>(top, inputs, count, std::make_index_sequence<1>());
    add_inputs<Op>(top, inputs + 2, inputs_count - 2, count);
  } else {
    convert(top, inputs[0], count);
  }
}

}  // namespace shardproof::internal
