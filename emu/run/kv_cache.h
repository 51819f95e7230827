// A rank's paged cache: keys and values of its layers and heads, of every token that its replica is serving.
//
// A layer's cache is a matrix [blocks * block_size, width]; a token's row is found through its sequence's block table.
// Latent attention keeps what keys and values are made from: the normed latent and the rotated key that heads share,
// the same on every rank of tp. Over dcp a rank keeps its share of a sequence's tokens
// (cache_share.h) and nothing of the others. What was freed is poisoned: NaN, so that whoever reads it is found out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/model/config.h"
#include "emu/plan/block_tables.h"
#include "emu/plan/cache_share.h"
#include "emu/plan/layout.h"
#include "emu/plan/serving.h"
#include "ops/matrix.h"

namespace shardproof {

/// What a rank believes of a sequence in one of its passes.
struct CachedSequence {
  Chunk chunk;
  std::vector<std::int32_t> blocks;  ///< its table: at least as many blocks as hold the tokens up to chunk.end()
  std::vector<std::int64_t> slots;   ///< rows of the cache that the chunk's tokens are written to; -1: not kept here
};

/// The same of a pass.
struct CachedPass {
  std::vector<CachedSequence> sequences;
  std::int64_t block_size = 0;
  CacheShare share = {};
  /// Keys of this pass are written before they are read.
  bool write_first = true;
  /// What the requests of the pass leave is poisoned once it is free: false only where a fault has it so; nor is it
  /// freed before.
  bool poison_freed = true;
  bool frees_shared = false;
};

/// The rows of the cache that the rank keeps the chunk's tokens in, -1 for those that it does not keep.
std::vector<std::int64_t> slots_of(const Chunk& chunk, std::span<const std::int32_t> blocks, std::int64_t block_size,
                                   const CacheShare& share);

/// Elements of a token in a layer's cache on the layout's rank: its keys, and its values, which latent attention makes
/// from the same.
struct CacheWidths {
  std::int64_t keys = 0;
  std::int64_t values = 0;
};
CacheWidths cache_widths(const Layout& layout, const ModelConfig& model, int layer);

template <class T>
class KvCache {
 public:
  /// `model`, `layout` and `serving` outlive this.
  KvCache(const ModelConfig& model, const Layout& layout, const Serving& serving, std::int64_t blocks);

  /// Makes room for the chunks of a step, and says where. What requests that were complete before the step held is
  /// freed and poisoned first.
  CachedPass begin(std::span<const Chunk> chunks, std::int64_t step);
  /// After the pass: which requests are complete with these chunks.
  void end(std::span<const Chunk> chunks, const CachedPass& pass);

  std::int64_t block_size() const { return serving_.kv_block_size; }
  /// [slots, width], of a layer that the rank holds.
  ops::Matrix<T>& keys(int layer) { return layers_[place(layer)].keys; }
  ops::Matrix<T>& values(int layer) { return layers_[place(layer)].values; }

 private:
  struct LayerCache {
    ops::Matrix<T> keys, values;
  };
  struct Leaving {
    std::int64_t sequence = 0;
    bool poison = true;
    bool frees_shared = false;
  };
  std::size_t place(int layer) const { return static_cast<std::size_t>(layer - layout_.layers.begin); }
  void free_left();
  void poison(std::int32_t block);

  const Layout& layout_;
  const Serving& serving_;
  BlockTables tables_;
  std::int64_t step_ = 0;
  std::vector<Leaving> leaving_;  ///< with the end of the step
  std::vector<LayerCache> layers_;
};

extern template class KvCache<float>;
extern template class KvCache<double>;

}  // namespace shardproof
