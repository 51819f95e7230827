// The search for buffers that overlap in memory and must not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shardproof::internal {

/// What a call does with a buffer.
enum class Access : unsigned char { read, written };

/// A buffer of a call, for the search for overlaps.
struct Interval {
  std::uintptr_t begin;
  std::uintptr_t end;
  std::size_t owner;
  Access access;
  bool operator==(const Interval&) const = default;
};
/// Two overlapping buffers of different owners, one of them written; the first owner is -1 if there are none.
/// Sorts the intervals.
struct Overlap {
  std::ptrdiff_t first = -1;
  std::ptrdiff_t second = -1;
};
Overlap find_overlap(std::vector<Interval>& intervals);

}  // namespace shardproof::internal
