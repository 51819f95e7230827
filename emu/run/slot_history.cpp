#include "emu/run/slot_history.h"

#include <utility>

#include "emu/plan/block_tables.h"
#include "emu/run/kv_cache.h"

namespace shardproof {

std::vector<SlotToken> left_behind(const TokenMap& tokens, const Serving& serving, std::int64_t blocks, int dp,
                                   std::int64_t microbatch, std::size_t index) {
  BlockTables tables(blocks, serving.kv_block_size);
  std::vector<SlotToken> held(static_cast<std::size_t>(blocks * serving.kv_block_size));
  std::vector<SlotToken> found;
  std::vector<std::int64_t> leaving;
  for (std::int64_t m = 0; m <= microbatch; ++m) {
    const std::span<const Chunk> chunks = tokens.chunks(dp, m);
    if (m > 0 && tokens.step_of(m) != tokens.step_of(m - 1)) {
      for (const std::int64_t sequence : std::exchange(leaving, {})) tables.release(sequence);
    }
    std::vector<std::vector<std::int64_t>> slots;
    for (const Chunk& chunk : chunks) {
      if (chunk.prefix_of >= 0) tables.share(chunk.sequence, chunk.prefix_of, chunk.begin);
      tables.extend(chunk.sequence, chunk.end());
      slots.push_back(slots_of(chunk, tables.table(chunk.sequence), serving.kv_block_size, {}));
    }
    if (m == microbatch) {
      for (const std::int64_t slot : slots[index]) found.push_back(held[static_cast<std::size_t>(slot)]);
      break;
    }
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      for (std::size_t t = 0; t < slots[i].size(); ++t) {
        held[static_cast<std::size_t>(slots[i][t])] = {chunks[i].sequence,
                                                       chunks[i].begin + static_cast<std::int64_t>(t)};
      }
    }
    for (const Chunk& chunk : chunks) {
      const Request& request = serving.requests[static_cast<std::size_t>(chunk.sequence)];
      if (chunk.end() == request.tokens()) leaving.push_back(chunk.sequence);
    }
  }
  return found;
}

}  // namespace shardproof
