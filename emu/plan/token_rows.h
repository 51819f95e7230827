// Rows of the global tokens that lie in several runs, as a zig-zag share of a sequence does.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/plan/partition.h"

namespace shardproof {

/// The rows of a rank's tensor, in its order: row `place` of the tensor is row `rows[place]` of the global tokens.
/// Example, runs {0, 3} and {9, 3}: 6 rows, of which the one at place 4 is global row 10.
struct TokenRows {
  /// At least one; disjoint. An empty run stands alone: it says where the rows would be.
  std::vector<Range> runs{Range{}};

  std::int64_t count() const;
  /// Of a place up to count(), which is that of the row after the last.
  std::int64_t operator[](std::int64_t place) const;
  /// The inverse; none when the row is not among these.
  std::optional<std::int64_t> place_of(std::int64_t row) const;
  /// The rows at these places.
  TokenRows part(Range places) const;

  bool operator==(const TokenRows&) const = default;
};

}  // namespace shardproof
