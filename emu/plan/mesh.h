// The rank mesh: where each rank stands on the attention axes and on the expert axes.
//
// Two generators over the same ranks, leftmost axis fastest (Megatron's order tp-cp-ep-dp-pp):
//   attention: rank = tp + TP * (cp + CP * (dp + DP * pp))
//   experts:   rank = etp + ETP * (ep + EP * (edp + EDP * pp))
// The pipeline axis is slowest in both, so a rank has one stage.
//
// Example, tp2 dp2 pp2 with ep4 (8 ranks): rank 5 is attention (tp 1, dp 0, pp 1) and experts (ep 1, pp 1); its tp
// group is {4, 5}, its ep group {4, 5, 6, 7}, its pp group {1, 5}.
//
// Inside a tp group, decode context parallelism has groups of its own: dcp ranks in a row, rank % dcp each. Inside a cp
// group, so has a2a+p2p: cp_a2a neighbours, and across these the members of a ring, cp = cp_a2a index + size * cp_p2p.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "emu/plan/parallel.h"

namespace shardproof {

enum class Axis { tp, cp, dp, pp, etp, ep, edp, dcp, cp_a2a, cp_p2p };

inline constexpr int kAxisCount = static_cast<int>(Axis::cp_p2p) + 1;

/// "tp", "cp", "dp", "pp", "etp", "ep", "edp", "dcp", "cp_a2a", "cp_p2p".
std::string_view to_string(Axis axis);

/// A set of axes.
class Axes {
 public:
  constexpr Axes() = default;
  constexpr Axes(Axis axis) : bits_(bit(axis)) {}  // NOLINT(google-explicit-constructor): one axis is a set of them
  constexpr Axes(std::initializer_list<Axis> axes) {
    for (const Axis axis : axes) bits_ |= bit(axis);
  }
  /// These and one more.
  constexpr Axes with(Axis axis) const {
    Axes more = *this;
    more.bits_ |= bit(axis);
    return more;
  }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool contains(Axis axis) const { return (bits_ & bit(axis)) != 0; }
  bool operator==(const Axes&) const = default;

 private:
  static constexpr unsigned bit(Axis axis) { return 1U << static_cast<unsigned>(axis); }
  unsigned bits_ = 0;
};

/// A rank's index along every axis.
struct Coordinates {
  int tp = 0, cp = 0, dp = 0, pp = 0, etp = 0, ep = 0, edp = 0, dcp = 0, cp_a2a = 0, cp_p2p = 0;
  int operator[](Axis axis) const;
  bool operator==(const Coordinates&) const = default;
};

class Mesh {
 public:
  /// Throws std::invalid_argument when a degree is below 1, or the ranks are more than an int counts.
  explicit Mesh(const Parallel& parallel);

  const Parallel& parallel() const { return parallel_; }
  int world() const { return parallel_.world(); }
  int degree(Axis axis) const;

  Coordinates coordinates(int rank) const;
  /// The inverse; of the coordinates, those on the attention axes count.
  int rank_at(const Coordinates& at) const;

  /// The ranks that differ from `rank` only along `axis` (on that axis' own mesh), in order of their index.
  std::vector<int> group(Axis axis, int rank) const;
  /// The ranks that can be reached from `rank` along the axes, ascending.
  std::vector<int> group(const Axes& axes, int rank) const;
  /// Every group of the axis, ordered by its lowest rank.
  std::vector<std::vector<int>> groups(Axis axis) const;

 private:
  Parallel parallel_;
};

}  // namespace shardproof
