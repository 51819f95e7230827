// Names the cause of a wrong tensor of somebody's own scheme, of which nothing is known but what it should be and what
// the ranks handed in. Of the names of diagnose.h: zero, not_finite, counted_n_times, averaged, constant_offset,
// reduction_dropped, rows_permuted, blocks_permuted, replicas_differ, unknown.
#pragma once

#include <span>

#include "emu/diagnose/capture.h"
#include "emu/judge/cause.h"
#include "emu/judge/expected.h"
#include "emu/plan/mesh.h"

namespace shardproof {

/// `tolerance` is relative to a row's scale (ExpectedTap::scale), as the scheme's bound.
Cause scheme_cause(const ExpectedTap& expected, std::span<const TapPart> parts, const Mesh& mesh, double tolerance);

}  // namespace shardproof
