#include "emu/run/block_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace shardproof {

BlockTables::BlockTables(std::int64_t blocks, std::int64_t block_size) : block_size_(block_size) {
  // Steps of about 0.62 of all blocks, without a common divisor: every block once, no two neighbours in turn.
  std::int64_t stride = std::max<std::int64_t>(1, blocks * 618 / 1000);
  while (std::gcd(stride, blocks) > 1) ++stride;
  for (std::int64_t i = 0; i < blocks; ++i) free_.push_back(static_cast<std::int32_t>(i * stride % blocks));
}

void BlockTables::extend(std::int64_t sequence, std::int64_t tokens) {
  std::vector<std::int32_t>& table = tables_[sequence];
  const std::int64_t more = (tokens + block_size_ - 1) / block_size_ - std::ssize(table);
  if (more > free_blocks()) {
    throw std::logic_error(
        fmt::format("sequence {} needs {} more blocks of the cache, {} are free", sequence, more, free_blocks()));
  }
  for (std::int64_t i = 0; i < more; ++i) {
    table.push_back(free_.back());
    free_.pop_back();
  }
}

std::vector<std::int32_t> BlockTables::release(std::int64_t sequence) {
  std::vector<std::int32_t> table = std::move(tables_.at(sequence));
  tables_.erase(sequence);
  free_.insert(free_.end(), table.begin(), table.end());
  return table;
}

}  // namespace shardproof
