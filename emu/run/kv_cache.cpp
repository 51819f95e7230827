#include "emu/run/kv_cache.h"

#include <algorithm>
#include <limits>

namespace shardproof {
namespace {

template <class T>
ops::Matrix<T> poisoned(std::int64_t rows, std::int64_t cols) {
  ops::Matrix<T> matrix(rows, cols);
  std::ranges::fill(matrix.span(), std::numeric_limits<T>::quiet_NaN());
  return matrix;
}

}  // namespace

CacheWidths cache_widths(const Layout& layout, const ModelConfig& model, int layer) {
  const AttentionSpec& spec = model.layers[layer].attention;
  if (spec.latent()) return {.keys = spec.kv_lora_rank + spec.rope.dim};
  const std::int64_t heads = layout.layer(model, layer).kv_heads.count;
  return {.keys = heads * spec.head_dim, .values = heads * spec.value_dim()};
}

template <class T>
KvCache<T>::KvCache(const ModelConfig& model, const Layout& layout, const Serving& serving, std::int64_t blocks)
    : layout_(layout), serving_(serving), tables_(blocks, serving.kv_block_size) {
  const std::int64_t slots = blocks * serving.kv_block_size;
  for (auto layer = static_cast<int>(layout.layers.begin); layer < layout.layers.end(); ++layer) {
    const CacheWidths widths = cache_widths(layout, model, layer);
    layers_.push_back({poisoned<T>(slots, widths.keys), poisoned<T>(slots, widths.values)});
  }
}

template <class T>
CachedPass KvCache<T>::begin(std::span<const Chunk> chunks) {
  const std::int64_t size = tables_.block_size();
  CachedPass pass{.sequences = {}, .block_size = size};
  for (const Chunk& chunk : chunks) {
    tables_.extend(chunk.sequence, chunk.end());
    const std::span<const std::int32_t> table = tables_.table(chunk.sequence);
    CachedSequence& sequence = pass.sequences.emplace_back(CachedSequence{chunk, {table.begin(), table.end()}, {}});
    for (std::int64_t token = chunk.begin; token < chunk.end(); ++token) {
      sequence.slots.push_back(table[static_cast<std::size_t>(token / size)] * size + token % size);
    }
  }
  return pass;
}

template <class T>
void KvCache<T>::end(std::span<const Chunk> chunks) {
  for (const Chunk& chunk : chunks) {
    if (chunk.end() < serving_.requests[static_cast<std::size_t>(chunk.sequence)].tokens()) continue;
    for (const std::int32_t block : tables_.release(chunk.sequence)) {
      const std::int64_t first = block * tables_.block_size();
      for (LayerCache& layer : layers_) {
        for (ops::Matrix<T>* rows : {&layer.keys, &layer.values}) {
          std::ranges::fill(rows->span().subspan(static_cast<std::size_t>(first * rows->cols()),
                                                 static_cast<std::size_t>(tables_.block_size() * rows->cols())),
                            std::numeric_limits<T>::quiet_NaN());
        }
      }
    }
  }
}

template class KvCache<float>;
template class KvCache<double>;

}  // namespace shardproof
