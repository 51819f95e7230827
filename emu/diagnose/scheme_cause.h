// Names the cause of a wrong tensor of somebody's own scheme, of which nothing is known but what it should be and what
// the ranks handed in. Of the names of diagnose.h: zero, not_finite, counted_n_times, averaged, constant_offset,
// reduction_dropped, rows_permuted, blocks_permuted, replicas_differ, unknown.
#pragma once

#include <span>
#include <vector>

#include "emu/diagnose/capture.h"
#include "emu/judge/cause.h"
#include "emu/judge/expected.h"
#include "emu/plan/mesh.h"

namespace shardproof {

/// What the ranks handed in of one tensor.
struct SchemeParts {
  std::span<const TapPart> whole;         ///< blocks; of partial sums, what those of a group add up to, on every member
  std::span<const TapPart> partial_sums;  ///< of groups in which every member handed in its own
  std::span<const std::vector<int>> groups;  ///< of each partial sum: whose add up to the block
};

/// `tolerance` is relative to a row's scale (ExpectedTap::scale), as the scheme's bound.
Cause scheme_cause(const ExpectedTap& expected, const SchemeParts& parts, const Mesh& mesh, double tolerance);

}  // namespace shardproof
