// What came of one tensor: who handed in which block of it, with which bits.
//
// Nothing here depends on the order in which parts arrive: what is wrong is decided when all have come.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/collector.h"

namespace shardproof {

/// Which elements a part is: its ranges, and the list of its rows where it has one.
struct Block {
  Range rows;
  Range cols;
  std::vector<std::int64_t> row_list;

  std::array<std::int64_t, 4> places() const { return {rows.begin, rows.count, cols.begin, cols.count}; }
  bool operator<(const Block& other) const {
    const auto mine = places(), others = other.places();
    return mine != others ? mine < others : row_list < other.row_list;
  }
  Placement in(const ExpectedTap& tap) const {
    return {.rows = tap.rows, .cols = tap.cols, .row_part = rows, .col_part = cols, .row_list = row_list};
  }
};

Block block_of(const Placement& placement);
/// "rows 0..4, columns 8..16".
std::string to_string(const Block& block);

/// Why the part cannot be one of the tensor; empty when it can.
std::string shape_problem(const ExpectedTap& expected, const Placement& placement, std::int64_t rows,
                          std::int64_t cols);
/// Why the listed ranks cannot be those that the partial sums of a block come from; empty when they can.
std::string group_problem(const Placement& placement, int rank, int world);

/// A part as a rank handed it in.
struct HeldPart {
  std::uint64_t hash = 0;  ///< of its bits
  double squares = 0;      ///< the sum of their squares
  Axes replicas = {};      ///< along which others must have it too (Placement::replicas)
  KeptValues values = {};  ///< where parts are kept
};

class TapLedger {
 public:
  struct PartialSum {
    int rank = 0;
    Block block;
    std::vector<int> group;  ///< whose partial sums make the block, ascending
    Axes replicas;
    KeptValues values;
  };

  std::mutex mutex;  // of all below
  TapOutcome outcome;

  /// A part that was compared. True: nothing of the tap is missing any more, for the first time. `keep` is called where
  /// the block has elements and nobody has brought any of them before: never after the tap is complete.
  template <class Keep>
  bool add(const ExpectedTap& expected, const Placement& placement, const Block& block, int rank, HeldPart&& part,
           const Keep& keep) {
    outcome.seen = true;
    const auto [holders, fresh] = blocks_.try_emplace(block);
    const auto [mine, first] = holders->second.try_emplace(rank, std::move(part));
    if (!first && mine->second.hash != part.hash) {
      note_problem(rank, "a rank handed in the same block twice, with different bits: " + to_string(holders->first));
    }
    if (!fresh) return false;
    const std::int64_t before = covered_count_;
    const bool fresh_elements = cover(expected, placement);
    if (covered_count_ == before) return false;
    if (fresh_elements) keep();
    return covered_count_ == expected.size();
  }

  /// What is kept already of the block with the same values; empty when nothing is.
  KeptValues kept(const Block& block, const HeldPart& part) const;

  void add_partial_sum(PartialSum part);
  void note_problem(int rank, const std::string& problem) { problems_[problem].insert(rank); }
  void note_worst(const WorstElement& worst, int rank);
  /// Of ids: the values of the lowest rank that brought a block.
  void keep_ids(const Placement& placement, int rank, std::vector<std::int32_t> values);

  const std::map<Block, std::map<int, HeldPart>>& blocks() const { return blocks_; }

  /// After the run: adds the partial sums, looks for what never came, and folds what did.
  void finish(const ExpectedTap& expected, const Mesh& mesh, double bound);

 private:
  void begin_covering(const ExpectedTap& expected);
  bool cover(const ExpectedTap& expected, const Placement& placement);
  using Members = std::map<int, const PartialSum*>;
  void add_partial_sums(const ExpectedTap& expected, double bound);
  void add_group(const ExpectedTap& expected, const Block& block, const std::vector<int>& group, const Members& members,
                 double bound);
  void find_overlaps();
  void find_absent_replicas(const Mesh& mesh);
  void fold_blocks(const ExpectedTap& expected);
  void fold_replicas(const Block& block, const std::map<int, HeldPart>& holders, const ExpectedTap& expected);
  void note_problems(const ExpectedTap& expected);

  std::map<Block, std::map<int, HeldPart>> blocks_;
  std::map<Block, std::pair<int, std::vector<std::int32_t>>> ids_;
  std::vector<std::uint8_t> covered_;  // per element
  std::int64_t covered_count_ = 0;
  std::vector<PartialSum> partials_;
  std::map<std::string, std::set<int>> problems_;
  std::map<std::string, std::set<int>> absences_;  // who had to hand something in, and never did
};

/// The worst element of a part, by its error relative to its row's scale.
template <class T>
WorstElement compare(const ExpectedTap& expected, const Placement& placement, ops::MatrixView<const T> part,
                     double bound);

}  // namespace shardproof
