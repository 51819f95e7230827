#include "emu/paper/rank_table.h"

#include <fmt/format.h>

#include <algorithm>

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
  const FeedForwardSpec& experts = m.layers[0].feed_forward;
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
      return fmt::format("{} experts of a layer: {}", experts.num_experts, shares(experts.num_experts, p.ep));
    case Axis::edp:
      return "nothing: replicas of the experts";
  }
  return "";
}

std::vector<std::string> rank_row(const Plan& plan, const RankFigures& r) {
  const Coordinates& at = r.at;
  const auto number = [](int n) { return fmt::format("{}", n); };
  std::vector<std::string> row{number(r.rank), number(at.tp)};
  if (plan.parallel.cp > 1) row.push_back(number(at.cp));
  for (const int n : {at.dp, at.pp, at.etp, at.ep, at.edp}) row.push_back(number(n));
  const Range batch = sequences_of_replica(plan.parallel, plan.workload.batch(), at.dp);
  const std::string part = plan.parallel.etp > 1 ? fmt::format("/{}", plan.parallel.etp) : "";
  for (const std::string& text : {range_text(r.layers), range_text(r.heads), range_text(r.kv_heads),
                                  range_text(r.experts) + part, range_text(batch)}) {
    row.push_back(text);
  }
  return row;
}

/// What moves on when the pattern of `block` GPUs repeats.
std::string next_text(const RankFigures& from, const RankFigures& to) {
  std::string text;
  const auto add = [&](const char* name, int a, int b) {
    if (a != b) text += fmt::format("{}{} {:+}", text.empty() ? "" : ", ", name, b - a);
  };
  add("tp", from.at.tp, to.at.tp);
  add("cp", from.at.cp, to.at.cp);
  add("dp", from.at.dp, to.at.dp);
  add("etp", from.at.etp, to.at.etp);
  add("ep", from.at.ep, to.at.ep);
  add("edp", from.at.edp, to.at.edp);
  return text;
}

void add_stage(const Plan& plan, const std::vector<RankFigures>& ranks, int stage, TextRows& rows) {
  const Parallel& p = plan.parallel;
  const int size = p.tp * p.cp * p.dp;
  const int first = stage * size;
  const int block = std::min({size, std::max(p.tp, p.etp), 8});
  const auto at = [&](int rank) -> const RankFigures& { return ranks[static_cast<std::size_t>(rank)]; };
  for (int rank = first; rank < first + block; ++rank) rows.push_back(rank_row(plan, at(rank)));
  if (block == size) return;
  std::vector<std::string> next(rows[0].size());
  next.front() = "...";
  next.back() = fmt::format("next {}: {}", block, next_text(at(first), at(first + block)));
  rows.push_back(next);
  rows.push_back(rank_row(plan, at(first + size - 1)));
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
  for (const Axis axis : {Axis::tp, Axis::cp, Axis::dp, Axis::pp, Axis::etp, Axis::ep, Axis::edp}) {
    const int degree = mesh.degree(axis);
    if (degree == 1) continue;
    rows.push_back({std::string(to_string(axis)), fmt::format("{}", degree), fmt::format("{}", mesh.world() / degree),
                    group_text(mesh.group(axis, 0)), split_by(plan, axis)});
  }
  return rows;
}

TextRows rank_rows(const Plan& plan, const std::vector<RankFigures>& ranks, int most) {
  std::vector<std::string> head{"GPU", "tp"};
  if (plan.parallel.cp > 1) head.emplace_back("cp");
  for (const char* name : {"dp", "pp", "etp", "ep", "edp", "layers", "heads", "kv", "experts", "sequences"}) {
    head.emplace_back(name);
  }
  TextRows rows{head};
  if (static_cast<int>(ranks.size()) <= most) {
    for (const RankFigures& rank : ranks) rows.push_back(rank_row(plan, rank));
    return rows;
  }
  const int stages = plan.parallel.pp;
  for (int stage = 0; stage < stages; ++stage) {
    if (stages > 4 && stage >= 2 && stage + 1 < stages) {
      if (stage == 2) rows.push_back({fmt::format("... stages 2-{}", stages - 2)});
      continue;
    }
    add_stage(plan, ranks, stage, rows);
  }
  return rows;
}

}  // namespace shardproof
