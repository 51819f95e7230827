// Which GPU is what: rows for a table of the ranks, whole where it is short and folded by its pattern where it is long.
#pragma once

#include <string>
#include <vector>

#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// Cells of text; the first row is the head.
using TextRows = std::vector<std::vector<std::string>>;

/// One row an axis of degree above 1: degree, number of groups, the first group, the distance between neighbours, and
/// what the axis splits. Says all of the mesh at any world size.
TextRows axis_rows(const Plan& plan);

/// What a rank holds, as cells of a table.
struct RankCells {
  Coordinates at;
  std::string layers, heads, kv_heads, experts, intermediate_size, sequences;
};
RankCells rank_cells(const Plan& plan, int rank);

/// One row a GPU: coordinates on both meshes, layers, heads, experts, sequences. More than `most` ranks are folded: the
/// first GPUs of a stage up to where the pattern repeats, "..." with what the next ones change, and the last GPU; so
/// for each stage, or the first two and the last where there are many.
TextRows rank_rows(const Plan& plan, int most = 32);

/// "4-7"; "4" for one; "-" for none.
std::string range_text(Range range);
/// The rank's group along an axis, shortened: "0 2 4 ... 126".
std::string group_text(const std::vector<int>& group);

}  // namespace shardproof
