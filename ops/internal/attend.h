// Attention of the query heads that share one key and value head, within one sequence.
#pragma once

#include <cstdint>
#include <span>

#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

template <class T>
struct HeadOptions {
  T scale;                   ///< times q . k
  Index window;              ///< keys that a token sees, itself included
  const T* sinks = nullptr;  ///< of each query head, if there are any
};

/// Keys or values of a sequence, token by token: one after another, or in blocks.
template <class T>
struct TokenRowsOf {
  MatrixView<const T> rows;
  const std::int32_t* blocks = nullptr;
  Index block_size = 0;

  Index cols() const { return rows.cols; }
  const T* row(Index token) const {
    if (blocks == nullptr) return rows.data + token * rows.stride;
    return rows.data + (blocks[token / block_size] * block_size + token % block_size) * rows.stride;
  }
  /// Tokens from this one on whose rows are a stride apart.
  Index run(Index token) const { return blocks == nullptr ? rows.rows - token : block_size - token % block_size; }
  TokenRowsOf columns(Index first, Index count) const { return {rows.col_range(first, count), blocks, block_size}; }
};

/// q [tokens, group * head_dim], k [past + tokens, head_dim], v [past + tokens, value_dim], out [tokens, group *
/// value_dim]. The definition, in two passes with the true maximum of each row; one score buffer of past + tokens.
template <class T>
void attend_in_two_passes(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past,
                          const HeadOptions<T>& options, Format format, MatrixView<T> out);

/// The same of one token's query heads, with the bits of attend_in_tiles, for all heads of keys together: of memory
/// that several heads' keys share each line is read once. q [kv_heads * group * head_dim], k [past + 1, kv_heads *
/// head_dim], v [past + 1, kv_heads * value_dim], out [kv_heads * group * value_dim].
template <class T>
void attend_from_one(std::span<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index kv_heads, Index past,
                     const HeadOptions<T>& options, Format format, std::span<T> out);

/// As attend_in_two_passes in tiles of queries and keys with a running maximum: per row m = max s, l = sum exp(s - m),
/// and the weighted sum of values, all rescaled by exp(m_old - m_new) when a tile raises m (Dao et al. 2022). Keys go
/// in order. The scale is multiplied into the queries. Memory: a copy of k and v, and one tile.
template <class T>
void attend_in_tiles(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past,
                     const HeadOptions<T>& options, Format format, MatrixView<T> out);

}  // namespace shardproof::ops
