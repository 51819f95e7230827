// The tokens of a run and how data parallelism and microbatches split them.
//
// Sequences lie one after another; a data-parallel replica takes a contiguous run of them, a microbatch a contiguous
// run of those, so that the rows of any part are one range of the global token rows. Both splits may be uneven, or
// empty.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/plan/partition.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// One microbatch of one data-parallel replica.
struct MicroBatch {
  Range rows;                           ///< of the global token rows
  std::vector<std::int64_t> offsets;    ///< where each sequence begins among these rows, and their end; sequences + 1
  std::vector<std::int64_t> positions;  ///< of each row within its sequence
};

class Batch {
 public:
  /// Token ids are uniform over the vocabulary, made from the workload's seed.
  Batch(const Workload& workload, std::int64_t vocab_size);
  /// Given token ids, one for each token of the lengths.
  Batch(std::vector<std::int64_t> lengths, std::vector<std::int32_t> tokens, std::int64_t microbatches);

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::span<const std::int64_t> lengths() const { return lengths_; }
  std::int64_t microbatches() const { return microbatches_; }
  MicroBatch microbatch(int dp, int dp_index, std::int64_t index) const;

 private:
  std::vector<std::int64_t> lengths_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::int32_t> tokens_;
  std::int64_t microbatches_;
};

}  // namespace shardproof
