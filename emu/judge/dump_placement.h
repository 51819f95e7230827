// Where the tensors of a rank's file lie in whole tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emu/model/taps.h"
#include "emu/plan/deployment.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// A block of a whole tensor.
struct HeldBlock {
  std::vector<std::int64_t> rows;
  Range cols;
  bool operator<(const HeldBlock& other) const;
};

class DumpPlacement {
 public:
  explicit DumpPlacement(const Plan& plan);

  int world() const { return static_cast<int>(deployment_.layouts.size()); }
  /// Whether the rank has any part of it.
  bool holds(int rank, const TapId& tap) const;
  /// The rank along the axis that the tap's partial sums are told apart by; -1 where it has none.
  int part_of_rank(int rank, TapKind kind) const;
  /// The rank's part, as the program has it. Of a tap whose rows are slots: all of them, since the router says whose
  /// they are.
  HeldBlock part(int rank, const TapId& tap) const;
  /// That part, and what a program that replicates more has.
  std::vector<HeldBlock> parts(int rank, const TapId& tap) const;
  /// All rows that the rank's attention sees.
  std::vector<std::int64_t> rows(int rank, TapRows which = TapRows::all) const;
  /// "rank 2 runs layers 4 to 7".
  std::string describe(int rank) const;

 private:
  Range cols(int rank, const TapId& tap) const;

  const Plan& plan_;
  Deployment deployment_;
};

}  // namespace shardproof
