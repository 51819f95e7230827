#include "emu/plan/mesh.h"

#include <fmt/format.h>

#include <cstdint>
#include <limits>
#include <set>
#include <stdexcept>

namespace shardproof {

std::string_view to_string(Axis axis) {
  switch (axis) {
    case Axis::tp:
      return "tp";
    case Axis::cp:
      return "cp";
    case Axis::dp:
      return "dp";
    case Axis::pp:
      return "pp";
    case Axis::etp:
      return "etp";
    case Axis::ep:
      return "ep";
    case Axis::edp:
      return "edp";
    case Axis::dcp:
      return "dcp";
    case Axis::cp_a2a:
      return "cp_a2a";
    case Axis::cp_p2p:
      return "cp_p2p";
  }
  return "?";
}

int Coordinates::operator[](Axis axis) const {
  switch (axis) {
    case Axis::tp:
      return tp;
    case Axis::cp:
      return cp;
    case Axis::dp:
      return dp;
    case Axis::pp:
      return pp;
    case Axis::etp:
      return etp;
    case Axis::ep:
      return ep;
    case Axis::edp:
      return edp;
    case Axis::dcp:
      return dcp;
    case Axis::cp_a2a:
      return cp_a2a;
    case Axis::cp_p2p:
      return cp_p2p;
  }
  return 0;
}

Mesh::Mesh(const Parallel& parallel) : parallel_(parallel) {
  std::int64_t world = 1;
  if (parallel.cp_a2a < 1 || parallel.cp % parallel.cp_a2a != 0) {
    throw std::invalid_argument(
        fmt::format("cp_a2a is {}; a divisor of cp {} is needed", parallel.cp_a2a, parallel.cp));
  }
  for (const Axis axis : {Axis::tp, Axis::cp, Axis::dp, Axis::pp, Axis::etp, Axis::ep, Axis::edp, Axis::dcp}) {
    const int own = degree(axis);
    if (own < 1) throw std::invalid_argument(fmt::format("{} is {}; at least 1 is needed", to_string(axis), own));
    if (axis == Axis::etp || axis == Axis::ep || axis == Axis::edp || axis == Axis::dcp) continue;
    if (world <= std::numeric_limits<int>::max()) world *= own;
  }
  if (world <= std::numeric_limits<int>::max()) return;
  throw std::invalid_argument(fmt::format("tp {} * cp {} * dp {} * pp {} are more than {} ranks", parallel.tp,
                                          parallel.cp, parallel.dp, parallel.pp, std::numeric_limits<int>::max()));
}

int Mesh::degree(Axis axis) const {
  switch (axis) {
    case Axis::tp:
      return parallel_.tp;
    case Axis::cp:
      return parallel_.cp;
    case Axis::dp:
      return parallel_.dp;
    case Axis::pp:
      return parallel_.pp;
    case Axis::etp:
      return parallel_.etp;
    case Axis::ep:
      return parallel_.ep;
    case Axis::edp:
      return parallel_.edp;
    case Axis::dcp:
      return parallel_.dcp;
    case Axis::cp_a2a:
      return parallel_.cp_a2a;
    case Axis::cp_p2p:
      return parallel_.cp_a2a > 1 ? parallel_.cp / parallel_.cp_a2a : 1;
  }
  return 1;
}

Coordinates Mesh::coordinates(int rank) const {
  Coordinates at;
  int rest = rank;
  at.tp = rest % parallel_.tp;
  at.dcp = at.tp % parallel_.dcp;
  rest /= parallel_.tp;
  at.cp = rest % parallel_.cp;
  at.cp_a2a = at.cp % degree(Axis::cp_a2a);
  at.cp_p2p = at.cp / degree(Axis::cp_a2a) % degree(Axis::cp_p2p);
  rest /= parallel_.cp;
  at.dp = rest % parallel_.dp;
  at.pp = rest / parallel_.dp;

  rest = rank;
  at.etp = rest % parallel_.etp;
  rest /= parallel_.etp;
  at.ep = rest % parallel_.ep;
  rest /= parallel_.ep;
  at.edp = rest % parallel_.edp;
  return at;
}

int Mesh::rank_at(const Coordinates& at) const {
  return at.tp + parallel_.tp * (at.cp + parallel_.cp * (at.dp + parallel_.dp * at.pp));
}

namespace {

/// How far apart in rank two neighbours along the axis are: the product of the degrees before it.
int stride_of(const Parallel& p, Axis axis) {
  switch (axis) {
    case Axis::tp:
    case Axis::etp:
    case Axis::dcp:
      return 1;
    case Axis::cp:
    case Axis::cp_a2a:
      return p.tp;
    case Axis::cp_p2p:
      return p.tp * p.cp_a2a;
    case Axis::dp:
      return p.tp * p.cp;
    case Axis::pp:
      return p.tp * p.cp * p.dp;
    case Axis::ep:
      return p.etp;
    case Axis::edp:
      return p.etp * p.ep;
  }
  return 1;
}

}  // namespace

std::vector<int> Mesh::group(Axis axis, int rank) const {
  const int size = degree(axis);
  const int stride = stride_of(parallel_, axis);
  const int first = rank - coordinates(rank)[axis] * stride;
  std::vector<int> members;
  members.reserve(static_cast<std::size_t>(size));
  for (int i = 0; i < size; ++i) members.push_back(first + i * stride);
  return members;
}

std::vector<int> Mesh::group(const Axes& axes, int rank) const {
  std::set<int> found{rank};
  std::vector<int> open{rank};
  while (!open.empty()) {
    const int from = open.back();
    open.pop_back();
    for (const Axis axis : {Axis::tp, Axis::cp, Axis::dp, Axis::pp, Axis::etp, Axis::ep, Axis::edp}) {
      if (!axes.contains(axis)) continue;
      for (const int member : group(axis, from)) {
        if (found.insert(member).second) open.push_back(member);
      }
    }
  }
  return {found.begin(), found.end()};
}

std::vector<std::vector<int>> Mesh::groups(Axis axis) const {
  std::vector<std::vector<int>> all;
  all.reserve(static_cast<std::size_t>(world() / degree(axis)));
  // A group is met first at its lowest member, whose index along the axis is zero.
  for (int rank = 0; rank < world(); ++rank) {
    if (coordinates(rank)[axis] == 0) all.push_back(group(axis, rank));
  }
  return all;
}

}  // namespace shardproof
