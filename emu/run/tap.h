// Taps: named intermediate tensors, handed out by the ranks with their placement.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string_view>
#include <variant>
#include <vector>

#include "collectives/rank.h"
#include "emu/model/taps.h"
#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "ops/matrix.h"

namespace shardproof {

/// Where a rank's part of a tensor lies, in DTensor's words. A tensor is a matrix [rows, cols]; a part is a block of
/// it. Ranks that hold the same block are replicas and must agree bit for bit; the blocks must cover the tensor, and
/// two different ones must not overlap. A rank may hold several blocks, and hand in the same bits of one again.
struct Placement {
  std::int64_t rows = 0;  ///< shape of the whole tensor
  std::int64_t cols = 0;
  Range row_part = {};  ///< the block that this rank holds
  Range col_part = {};
  /// Set when the parts of the ranks along these axes are partial sums of the block, added in rank order: every one of
  /// them has to hand in its own, of the same block.
  Axes partial = {};
  /// The same where those ranks lie along no axes: each of them, this one among them, in any order.
  std::span<const int> partial_ranks = {};
  /// Set when every rank along these axes holds the same block: one that does not tap it is missed. Without it, who
  /// does not tap a block that another rank has is taken to hold none of it.
  Axes replicas = {};
  /// Where the rows that the rank holds are no range: each of them, in the order of the part. Then row_part counts
  /// them.
  std::span<const std::int64_t> row_list = {};

  /// Every rank holds the whole.
  static constexpr Placement replicate(std::int64_t rows, std::int64_t cols) {
    return {rows, cols, {0, rows}, {0, cols}, {}};
  }
  /// The rank holds `part` of dim 0 (rows) or dim 1 (columns).
  static constexpr Placement shard(int dim, std::int64_t rows, std::int64_t cols, Range part) {
    if (dim != 0 && dim != 1) throw std::invalid_argument("a shard of a matrix is one of dim 0 or 1");
    return dim == 0 ? Placement{rows, cols, part, {0, cols}, {}} : Placement{rows, cols, {0, rows}, part, {}};
  }
  /// The rank holds a partial sum of the whole.
  static constexpr Placement partial_sum(std::int64_t rows, std::int64_t cols, Axes axes) {
    return {rows, cols, {0, rows}, {0, cols}, axes};
  }
  /// The rank holds a partial sum of the whole, as each of `ranks` does. The list outlives the placement.
  static constexpr Placement partial_sum(std::int64_t rows, std::int64_t cols, std::span<const int> ranks) {
    return {rows, cols, {0, rows}, {0, cols}, {}, ranks};
  }
  /// The rank holds those rows of the columns in `col_part`. The list outlives the placement.
  static constexpr Placement listed(std::int64_t rows, std::int64_t cols, std::span<const std::int64_t> list,
                                    Range col_part) {
    return {rows, cols, {0, static_cast<std::int64_t>(list.size())}, col_part, {}, {}, {}, list};
  }

  /// Where the part's i-th row lies.
  constexpr std::int64_t row(std::int64_t i) const {
    return row_list.empty() ? row_part.begin + i : row_list[static_cast<std::size_t>(i)];
  }
  constexpr bool is_partial_sum() const { return !partial.empty() || !partial_ranks.empty(); }
};

/// Of a tensor of more than two dims, which is placed as a matrix with all dims but the last folded into rows: the rows
/// of the part that has `part` of dimension `dim`, ascending, for Placement::listed.
///
/// Example: of [2, 3, 4], part {1, 2} of dim 1 is rows 1, 2, 4, 5 of 6. Throws std::invalid_argument for a negative or
/// uncountable extent, a `dim` that is not folded, and a part that reaches outside of it.
std::vector<std::int64_t> folded_rows(const std::vector<std::int64_t>& dims, int dim, Range part);

/// A rank's part of a tensor, of any element type that is tapped.
using TapValues = std::variant<ops::MatrixView<const float>, ops::MatrixView<const double>,
                               ops::MatrixView<const std::int32_t>, ops::MatrixView<const std::int64_t>>;

/// What is tapped: a tensor of the model, or one that a scheme of one's own names, of a step of its own (id.step).
struct TapKey {
  TapId id;
  std::string_view name;  ///< of a scheme's tensor; empty for the model's
};

/// Receives taps while a run goes on, from several threads at once. `part` is valid during the call only.
class TapSink {
 public:
  virtual ~TapSink() = default;
  virtual void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) = 0;
  /// Whether it takes the inner taps (TapRow::inner) too.
  virtual bool inner() const { return false; }
};

}  // namespace shardproof
