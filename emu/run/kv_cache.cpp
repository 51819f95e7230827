#include "emu/run/kv_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

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

std::vector<std::int64_t> slots_of(const Chunk& chunk, std::span<const std::int32_t> blocks, std::int64_t block_size,
                                   const CacheShare& share) {
  std::vector<std::int64_t> slots;
  for (std::int64_t token = chunk.begin; token < chunk.end(); ++token) {
    const std::int64_t place = share.place_of(token);
    slots.push_back(share.owns(token)
                        ? blocks[static_cast<std::size_t>(place / block_size)] * block_size + place % block_size
                        : -1);
  }
  return slots;
}

template <class T>
KvCache<T>::KvCache(const ModelConfig& model, const Layout& layout, const Serving& serving, std::int64_t blocks)
    : layout_(layout), serving_(serving), tables_(blocks, serving.tokens_of_block(layout.parallel.dcp)) {
  const std::int64_t slots = blocks * serving.kv_block_size;
  for (auto layer = static_cast<int>(layout.layers.begin); layer < layout.layers.end(); ++layer) {
    const CacheWidths widths = cache_widths(layout, model, layer);
    layers_.push_back({poisoned<T>(slots, widths.keys), poisoned<T>(slots, widths.values)});
  }
}

template <class T>
void KvCache<T>::poison(std::int32_t block) {
  const std::int64_t first = block * block_size();
  for (LayerCache& layer : layers_) {
    for (ops::Matrix<T>* rows : {&layer.keys, &layer.values}) {
      std::ranges::fill(rows->span().subspan(static_cast<std::size_t>(first * rows->cols()),
                                             static_cast<std::size_t>(block_size() * rows->cols())),
                        std::numeric_limits<T>::quiet_NaN());
    }
  }
}

template <class T>
void KvCache<T>::free_left() {
  for (const Leaving& left : std::exchange(leaving_, {})) {
    const std::span<const std::int32_t> table = tables_.table(left.sequence);
    const std::vector<std::int32_t> held(table.begin(), table.end()), freed = tables_.release(left.sequence);
    if (!left.poison) continue;
    for (const std::int32_t block : left.frees_shared ? held : freed) poison(block);
  }
}

template <class T>
CachedPass KvCache<T>::begin(std::span<const Chunk> chunks, std::int64_t step) {
  if (std::exchange(step_, step) != step) free_left();
  CachedPass pass{.sequences = {}, .block_size = block_size(), .share = cache_share(layout_.parallel, layout_.at)};
  for (const Chunk& chunk : chunks) {
    if (chunk.prefix_of >= 0) tables_.share(chunk.sequence, chunk.prefix_of, chunk.begin);
    tables_.extend(chunk.sequence, chunk.end());
    const std::span<const std::int32_t> table = tables_.table(chunk.sequence);
    pass.sequences.push_back(
        {chunk, {table.begin(), table.end()}, slots_of(chunk, table, pass.block_size, pass.share)});
  }
  return pass;
}

template <class T>
void KvCache<T>::end(std::span<const Chunk> chunks, const CachedPass& pass) {
  for (const Chunk& chunk : chunks) {
    if (chunk.end() < serving_.requests[static_cast<std::size_t>(chunk.sequence)].tokens()) continue;
    leaving_.push_back({chunk.sequence, pass.poison_freed, pass.frees_shared});
  }
}

template class KvCache<float>;
template class KvCache<double>;

}  // namespace shardproof
