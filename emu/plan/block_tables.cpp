#include "emu/plan/block_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace shardproof {

BlockTables::BlockTables(std::int64_t blocks, std::int64_t block_size)
    : block_size_(block_size), users_(static_cast<std::size_t>(blocks), 0) {
  // Steps of about 0.62 of all blocks, without a common divisor: every block once, no two neighbours in turn.
  std::int64_t stride = std::max<std::int64_t>(1, blocks * 618 / 1000);
  while (std::gcd(stride, blocks) > 1) ++stride;
  for (std::int64_t i = 0; i < blocks; ++i) free_.push_back(static_cast<std::int32_t>(i * stride % blocks));
}

void BlockTables::extend(std::int64_t sequence, std::int64_t tokens) {
  std::vector<std::int32_t>& table = tables_[sequence];
  const std::int64_t more = (tokens + block_size_ - 1) / block_size_ - std::ssize(table);
  if (!grows_ && more > free_blocks()) {
    throw std::logic_error(
        fmt::format("sequence {} needs {} more blocks of the cache, {} are free", sequence, more, free_blocks()));
  }
  for (std::int64_t i = 0; i < more; ++i) {
    if (free_.empty()) {
      free_.push_back(static_cast<std::int32_t>(users_.size()));
      users_.push_back(0);
    }
    table.push_back(free_.back());
    users_[static_cast<std::size_t>(free_.back())] = 1;
    free_.pop_back();
  }
}

void BlockTables::share(std::int64_t sequence, std::int64_t other, std::int64_t tokens) {
  const auto found = tables_.find(other);
  const std::span<const std::int32_t> held = found == tables_.end() ? std::span<const std::int32_t>() : found->second;
  if (tokens % block_size_ != 0 || tokens / block_size_ > std::ssize(held) || tables_.contains(sequence)) {
    throw std::logic_error(fmt::format("sequence {} cannot share {} tokens of sequence {}", sequence, tokens, other));
  }
  const auto shared = held.first(static_cast<std::size_t>(tokens / block_size_));
  for (const std::int32_t block : shared) ++users_[static_cast<std::size_t>(block)];
  tables_[sequence] = {shared.begin(), shared.end()};
}

std::vector<std::int32_t> BlockTables::release(std::int64_t sequence) {
  std::vector<std::int32_t> freed = std::move(tables_.at(sequence));
  tables_.erase(sequence);
  std::erase_if(freed, [&](std::int32_t block) { return --users_[static_cast<std::size_t>(block)] > 0; });
  free_.insert(free_.end(), freed.begin(), freed.end());
  return freed;
}

}  // namespace shardproof
