#include "emu/paper/rank_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"

namespace shardproof {
namespace {

/// "8 each", or "9 or 8" where it does not divide.
std::string shares(std::int64_t count, int degree) {
  if (count % degree == 0) return fmt::format("{} each", count / degree);
  return fmt::format("{} or {}", count / degree + 1, count / degree);
}

std::string split_by(const Plan& plan, Axis axis) {
  const ModelConfig& m = plan.model;
  const AttentionSpec& attention = m.layers[0].attention;
  const FeedForwardSpec& experts = m.experts();
  const Parallel& p = plan.parallel;
  switch (axis) {
    case Axis::tp: {
      const std::string kv =
          attention.kv_heads % p.tp == 0
              ? fmt::format("{} kv heads: {}", attention.kv_heads, shares(attention.kv_heads, p.tp))
              : fmt::format("{} kv heads: each on {} GPUs", attention.kv_heads, p.tp / attention.kv_heads);
      return fmt::format("{} heads: {}; {}; {} words: {}", attention.heads, shares(attention.heads, p.tp), kv,
                         m.vocab_size, shares(m.vocab_size, p.tp));
    }
    case Axis::cp:
      return "the tokens of a microbatch";
    case Axis::dp:
      return fmt::format("{} sequences: {}", plan.workload.batch(), shares(plan.workload.batch(), p.dp));
    case Axis::pp:
      return fmt::format("{} layers: {}", m.layers.size(), shares(m.layers.size(), p.pp));
    case Axis::etp:
      return fmt::format("{} columns of an expert: {}", experts.intermediate_size,
                         shares(experts.intermediate_size, p.etp));
    case Axis::ep:
      return fmt::format("{} experts of a layer: {}", experts.num_experts + p.experts.redundant,
                         shares(experts.num_experts + p.experts.redundant, p.ep));
    case Axis::edp:
      return "nothing: replicas of the experts";
    case Axis::dcp:
      return fmt::format("what is cached of a sequence: {} token{} in turn", p.dcp_interleave,
                         p.dcp_interleave == 1 ? "" : "s");
    case Axis::cp_a2a:
      return fmt::format("a rank's heads, among {} that exchange rows", p.cp_a2a);
    case Axis::cp_p2p:
      return "keys and values, which go round a ring";
  }
  return "";
}

std::vector<std::string> rank_row(const Plan& plan, int rank) {
  const RankCells cells = rank_cells(plan, rank);
  const Coordinates& at = cells.at;
  const auto number = [](int n) { return fmt::format("{}", n); };
  std::vector<std::string> row{number(rank), number(at.tp)};
  if (plan.parallel.cp > 1) row.push_back(number(at.cp));
  for (const int n : {at.dp, at.pp, at.etp, at.ep, at.edp}) row.push_back(number(n));
  const std::string part = plan.parallel.etp > 1 ? fmt::format("/{}", plan.parallel.etp) : "";
  row.insert(row.end(), {cells.layers, cells.heads, cells.kv_heads, cells.experts + part, cells.sequences});
  return row;
}

/// What moves on when the pattern of GPUs repeats.
std::string next_text(const Coordinates& from, const Coordinates& to) {
  std::string text;
  for (const Axis axis : {Axis::tp, Axis::cp, Axis::dp, Axis::etp, Axis::ep, Axis::edp}) {
    if (from[axis] == to[axis]) continue;
    text += fmt::format("{}{} {:+}", text.empty() ? "" : ", ", to_string(axis), to[axis] - from[axis]);
  }
  return text;
}

void add_stage(const Plan& plan, int stage, TextRows& rows) {
  const Mesh mesh(plan.parallel);
  const Parallel& p = plan.parallel;
  const int size = p.tp * p.cp * p.dp;
  const int first = stage * size;
  const int block = std::min({size, std::max(p.tp, p.etp), 8});
  for (int rank = first; rank < first + block; ++rank) rows.push_back(rank_row(plan, rank));
  if (block == size) return;
  std::vector<std::string> next(rows[0].size());
  next.front() = "...";
  next.back() = fmt::format("next {}: {}", block, next_text(mesh.coordinates(first), mesh.coordinates(first + block)));
  rows.push_back(next);
  rows.push_back(rank_row(plan, first + size - 1));
}

}  // namespace

std::string range_text(Range range) {
  if (range.count == 0) return "-";
  return range.count == 1 ? fmt::format("{}", range.begin) : fmt::format("{}-{}", range.begin, range.end() - 1);
}

std::string group_text(const std::vector<int>& group) {
  std::string text;
  for (std::size_t i = 0; i < group.size(); ++i) {
    if (group.size() > 8 && i >= 4 && i + 1 < group.size()) {
      if (i == 4) text += " ...";
      continue;
    }
    text += fmt::format("{}{}", text.empty() ? "" : " ", group[i]);
  }
  return text;
}

TextRows axis_rows(const Plan& plan) {
  const Mesh mesh(plan.parallel);
  TextRows rows{{"axis", "degree", "groups", "first group", "splits"}};
  for (const Axis axis : {Axis::tp, Axis::dcp, Axis::cp, Axis::cp_a2a, Axis::cp_p2p, Axis::dp, Axis::pp, Axis::etp,
                          Axis::ep, Axis::edp}) {
    const int degree = mesh.degree(axis);
    if (degree == 1) continue;
    rows.push_back({std::string(to_string(axis)), fmt::format("{}", degree), fmt::format("{}", mesh.world() / degree),
                    group_text(mesh.group(axis, 0)), split_by(plan, axis)});
  }
  return rows;
}

RankCells rank_cells(const Plan& plan, int rank) {
  const Layout layout = make_layout(plan.model, Mesh(plan.parallel), rank);
  const LayerLayout& layer = layout.layer(plan.model, layout.layers.begin);
  return {.at = layout.at,
          .layers = range_text(layout.layers),
          .heads = range_text(layer.heads),
          .kv_heads = range_text(layer.kv_heads),
          .experts = range_text(layer.experts),
          .intermediate_size = range_text(layer.intermediate_size),
          .sequences = range_text(sequences_of_replica(plan.parallel, plan.workload.batch(), layout.at.dp))};
}

TextRows rank_rows(const Plan& plan, int most) {
  std::vector<std::string> head{"GPU", "tp"};
  if (plan.parallel.cp > 1) head.emplace_back("cp");
  for (const char* name : {"dp", "pp", "etp", "ep", "edp", "layers", "heads", "kv", "experts", "sequences"}) {
    head.emplace_back(name);
  }
  TextRows rows{head};
  if (plan.world() <= most) {
    for (int rank = 0; rank < plan.world(); ++rank) rows.push_back(rank_row(plan, rank));
    return rows;
  }
  const int stages = plan.parallel.pp;
  for (int stage = 0; stage < stages; ++stage) {
    if (stages > 4 && stage >= 2 && stage + 1 < stages) {
      if (stage == 2) rows.push_back({fmt::format("... stages 2-{}", stages - 2)});
      continue;
    }
    add_stage(plan, stage, rows);
  }
  return rows;
}

}  // namespace shardproof
