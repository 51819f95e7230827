#include "emu/judge/dump_placement.h"

#include <fmt/format.h>

#include <numeric>
#include <tuple>

namespace shardproof {

bool HeldBlock::operator<(const HeldBlock& other) const {
  return std::tie(rows, cols.begin, cols.count) < std::tie(other.rows, other.cols.begin, other.cols.count);
}

DumpPlacement::DumpPlacement(const Plan& plan)
    : plan_(plan), deployment_(deploy(plan.model, plan.parallel, plan.workload)) {}

int DumpPlacement::part_of_rank(int rank, TapKind kind) const {
  const Coordinates& at = deployment_.layouts[static_cast<std::size_t>(rank)].at;
  switch (tap_row(kind).parts) {
    case TapParts::whole:
    case TapParts::over_keys:  // a rank has one for the keys of each
      return -1;
    case TapParts::over_tp:
      return at.tp;
    case TapParts::over_etp:
      return at.etp;
    case TapParts::over_ep:
      return at.ep;
  }
  return -1;
}

bool DumpPlacement::holds(int rank, const TapId& tap) const {
  const Layout& layout = deployment_.layouts[static_cast<std::size_t>(rank)];
  const bool one_part = tap.part >= 0 && tap_row(tap.kind).parts != TapParts::over_keys;
  if (one_part && tap.part != part_of_rank(rank, tap.kind)) return false;
  if (tap.layer >= 0) return tap.layer >= layout.layers.begin && tap.layer < layout.layers.end();
  const bool embeds = tap.kind == TapKind::embedding || tap.kind == TapKind::embedding_scaled;
  return embeds ? layout.first_stage() : layout.last_stage();
}

std::vector<std::int64_t> DumpPlacement::rows(int rank, TapRows which) const {
  const Coordinates& at = deployment_.layouts[static_cast<std::size_t>(rank)].at;
  const TokenMap& tokens = deployment_.tokens;
  std::vector<std::int64_t> rows;
  for (std::int64_t microbatch = 0; microbatch < tokens.microbatches(); ++microbatch) {
    const TokenRows held = which == TapRows::all   ? tokens.rows(at, microbatch)
                           : which == TapRows::own ? tokens.own(at, microbatch)
                                                   : tokens.stream(at, microbatch);
    for (const Range& run : held.runs) {
      for (std::int64_t row = run.begin; row < run.end(); ++row) rows.push_back(row);
    }
  }
  return rows;
}

Range DumpPlacement::cols(int rank, const TapId& tap) const {
  const Layout& layout = deployment_.layouts[static_cast<std::size_t>(rank)];
  return part_of(layout, plan_.model, tap_row(tap.kind).cols, tap.layer, tap_width(plan_.model, tap));
}

HeldBlock DumpPlacement::part(int rank, const TapId& tap) const {
  const TapRow& row = tap_row(tap.kind);
  if (!row.slots && row.parts != TapParts::over_ep) return {rows(rank, row.rows), cols(rank, tap)};
  std::vector<std::int64_t> slots(static_cast<std::size_t>(tap_rows(plan_.model, tap, plan_.workload.tokens())));
  std::iota(slots.begin(), slots.end(), std::int64_t{0});
  return {std::move(slots), cols(rank, tap)};
}

std::vector<HeldBlock> DumpPlacement::parts(int rank, const TapId& tap) const {
  const TapRow& row = tap_row(tap.kind);
  const Range whole{0, tap_width(plan_.model, tap)};
  std::vector<HeldBlock> parts{part(rank, tap)};
  if (!row.slots && row.rows != TapRows::all) parts.push_back({rows(rank), parts[0].cols});
  if (parts[0].cols != whole) {
    for (std::size_t i = 0, count = parts.size(); i < count; ++i) parts.push_back({parts[i].rows, whole});
  }
  return parts;
}

std::string DumpPlacement::describe(int rank) const {
  const Layout& layout = deployment_.layouts[static_cast<std::size_t>(rank)];
  return fmt::format("rank {} runs layers {} to {}", rank, layout.layers.begin, layout.layers.end() - 1);
}

}  // namespace shardproof
