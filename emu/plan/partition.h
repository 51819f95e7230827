// How a count is split over shards: contiguous ranges, the first `count % shards` one longer.
#pragma once

#include <cstdint>

namespace shardproof {

struct Range {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t end() const { return begin + count; }
  bool operator==(const Range&) const = default;
};

/// The part of 0..count-1 that `shard` of `shards` holds. partition(10, 4, 1) is {3, 3}.
constexpr Range partition(std::int64_t count, std::int64_t shards, std::int64_t shard) {
  const std::int64_t quotient = count / shards;
  const std::int64_t remainder = count % shards;
  const std::int64_t longer = shard < remainder ? shard : remainder;
  return {shard * quotient + longer, quotient + (shard < remainder ? 1 : 0)};
}

/// The inverse: the shard whose part holds `index`, 0..count-1.
constexpr std::int64_t shard_of(std::int64_t count, std::int64_t shards, std::int64_t index) {
  const std::int64_t quotient = count / shards;
  const std::int64_t remainder = count % shards;
  const std::int64_t in_longer = remainder * (quotient + 1);
  return index < in_longer ? index / (quotient + 1) : remainder + (index - in_longer) / quotient;
}

}  // namespace shardproof
