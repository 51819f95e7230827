// Which blocks of a paged cache hold which tokens: a block table for each sequence, and the free list.
//
// Bookkeeping without a number in it; every rank of a replica keeps the same. Blocks are handed out scattered, and
// those that came back last go out first, so that a table is hardly ever in order and blocks are used again. A full
// block may be in several tables; it is free when the last of them is gone.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace shardproof {

class BlockTables {
 public:
  /// `block_size` tokens each.
  BlockTables(std::int64_t blocks, std::int64_t block_size);
  /// As many as are asked for.
  explicit BlockTables(std::int64_t block_size) : block_size_(block_size), grows_(true) {}

  std::int64_t block_size() const { return block_size_; }
  std::int64_t free_blocks() const { return static_cast<std::int64_t>(free_.size()); }
  /// In a table.
  std::int64_t used_blocks() const { return static_cast<std::int64_t>(users_.size()) - free_blocks(); }

  /// Room for the first `tokens` tokens of the sequence. Throws std::logic_error when there are too few free blocks,
  /// which the schedule rules out.
  void extend(std::int64_t sequence, std::int64_t tokens);
  /// The table of a sequence that has none yet begins with the blocks that hold the first `tokens` tokens of `other`,
  /// which fill them.
  void share(std::int64_t sequence, std::int64_t other, std::int64_t tokens);
  /// The blocks of a sequence that has some, in order of its tokens.
  std::span<const std::int32_t> table(std::int64_t sequence) const { return tables_.at(sequence); }
  /// Of its block, so many tables have it.
  std::int64_t users(std::int32_t block) const { return users_[static_cast<std::size_t>(block)]; }
  /// Ends the sequence's table, and returns the blocks that are free now.
  std::vector<std::int32_t> release(std::int64_t sequence);

 private:
  std::int64_t block_size_;
  bool grows_ = false;
  std::vector<std::int32_t> free_;   // the last goes first
  std::vector<std::int32_t> users_;  // by block
  std::map<std::int64_t, std::vector<std::int32_t>> tables_;
};

}  // namespace shardproof
