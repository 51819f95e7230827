// Embedding lookup in a slice of the vocabulary.
#pragma once

#include <cstdint>
#include <span>

#include "ops/cost.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// table [slice, hidden] holds the rows vocab_begin .. vocab_begin + slice of the whole table; ids [tokens],
/// out [tokens, hidden]. An id outside the slice gives a row of zeros, so that the sum over slices is the lookup.
template <class T>
void embed(std::span<const std::int32_t> ids, MatrixView<const T> table, Index vocab_begin, MatrixView<T> out);
template <class T>
void embed(std::span<const std::int64_t> ids, MatrixView<const T> table, Index vocab_begin, MatrixView<T> out);

constexpr Cost embed_cost(Index tokens, Index hidden, int bytes_per_element) {
  return {0, 2.0 * static_cast<double>(tokens) * static_cast<double>(hidden) * bytes_per_element};
}

}  // namespace shardproof::ops
