// Holds the taps of a run to what is expected, while the run goes on.
//
// Every part is compared where it arrives, so that no tensor of the run is kept (but partial sums, until they
// are added). A tap is judged by its worst element: the one whose error |got - expected| is largest against the scale
// of its row (ExpectedTap::scale), or, where a PartJudge holds the parts to something else, against its own bound.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "emu/judge/expected.h"
#include "emu/run/tap.h"

namespace shardproof {

class TapLedger;

/// One element of what a rank made.
struct WorstElement {
  double error = 0;    ///< |got - expected|; infinite when the value is not finite
  double bound = 0;    ///< that the error may not exceed
  double measure = 0;  ///< what it is the worst by: the error over the row's scale, or over its bound
  std::int64_t row = 0;
  std::int64_t col = 0;
  double expected = 0;
  double got = 0;
};

/// Where a replica differs from the others.
struct OddElement {
  int rank = 0;
  int others = 0;  ///< one of the others
  std::int64_t row = 0;
  std::int64_t col = 0;
  double value = 0;
  double value_of_others = 0;
};

/// Row-major; replicas share them where one came after the other.
using KeptValues = std::shared_ptr<const std::vector<double>>;

/// A part as a rank handed it in.
struct KeptPart {
  int rank = 0;
  Placement placement;  ///< as placed() has it
  std::vector<std::int64_t> row_list;
  KeptValues values;
  std::vector<int> group = {};  ///< of a partial sum: whose make the block

  /// The placement, whose list of rows is this part's.
  Placement placed() const {
    Placement result = placement;
    result.row_list = row_list;
    return result;
  }
};

/// What a run made of one expected tap.
struct TapOutcome {
  bool seen = false;  ///< any rank tapped it
  WorstElement worst;
  std::map<int, WorstElement> rank_worst;  ///< by rank; of those whose parts have an error
  double norm = 0;                         ///< square root of the sum of squares, block by block
  std::uint64_t bits = 0;                  ///< hash of every block's place and bits, whoever holds it
  bool replicas_equal = true;
  std::vector<int> odd_replicas;          ///< ranks that differ from most of those that hold the same block
  std::optional<OddElement> odd_element;  ///< where the first of them does, if parts are kept
  std::set<int> holders;                  ///< who handed in any block of it
  /// What is wrong with the parts themselves: shape, overlap, elements that no rank holds. Empty when nothing is.
  std::string problem;
  std::int64_t absent = 0;  ///< elements that no rank holds, where that is the problem
  std::vector<int> problem_ranks;
  bool absent_ranks = false;  ///< they had to hand a part in (a partial sum, a declared replica), and did not
  /// Nothing is wrong with the parts but that some, or all, never came.
  bool missing() const { return !seen || absent > 0 || absent_ranks; }
  /// Of a tap that a PartJudge held to what the run had: why nothing is to be said of it, or of its agreement.
  std::string undecided;
  std::string vacuous;
  std::string not_judged;  ///< of a dump: why nothing could be held against it
  /// For taps of ids: the first rank's value of every element, [rows * cols]; -1 where none arrived.
  std::vector<std::int32_t> ids;
  std::vector<KeptPart> parts;         ///< all of them, where they are kept; of partial sums, what they add up to
  std::vector<KeptPart> partial_sums;  ///< those of groups that are complete
};

/// Takes the parts of taps that are held to more than a tensor that is known before the run.
class PartJudge {
 public:
  virtual ~PartJudge() = default;
  /// A block that nobody brought before; of one tap, one at a time.
  virtual void put(std::size_t tap, const Placement& placement, const TapValues& part) = 0;
  /// Every element of the tap was put.
  virtual void complete(std::size_t tap) = 0;
  /// The run is over; taps that are not complete will not be.
  virtual void run_ended() {}
  /// After the run: the worst of the wrong elements of a block; of a right one, no error.
  virtual WorstElement worst_in(std::size_t tap, const Placement& block) const = 0;
};

struct CollectorOptions {
  bool ordered_ids = false;    ///< a row of ids must be equal in order too
  double bound = 0;            ///< of an error, relative to its row's scale
  bool keep_parts = false;     ///< the values of every part, for schemes
  bool any_type = false;       ///< values may be tapped as integers
  PartJudge* judge = nullptr;  ///< in place of the expected values; takes the inner taps too
  /// Called with a tap's name when every element of it has arrived, from the thread that brought the last.
  std::function<void(const ExpectedTap& tap)> completed = {};
};

class TapCollector final : public TapSink {
 public:
  /// `expected` and `mesh` outlive the collector.
  TapCollector(const ExpectedTaps& expected, const Mesh& mesh, CollectorOptions options = {});
  ~TapCollector() override;

  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override;
  bool inner() const override { return options_.judge != nullptr; }

  /// After the run: adds the partial sums, looks for what never came; one outcome for each expected tap.
  std::vector<TapOutcome> finish();
  /// Names that a rank tapped and nothing is expected of.
  std::vector<std::string> unexpected() const;

 private:
  void note_unexpected(const TapKey& key);
  template <class T>
  void collect(GlobalRank rank, const TapKey& key, const Placement& placement, ops::MatrixView<const T> part);

  const ExpectedTaps& expected_;
  const Mesh& mesh_;
  CollectorOptions options_;
  std::vector<std::unique_ptr<TapLedger>> ledgers_;
  mutable std::mutex mutex_;
  std::set<std::string> unexpected_;
};

}  // namespace shardproof
