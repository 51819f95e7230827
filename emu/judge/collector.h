// Holds the taps of a run to what is expected, while the run goes on.
//
// Every part is compared where it arrives, so that no tensor of the run is kept (but addends, until they are summed).
// An error is |got - expected| over the scale of its row (ExpectedTap::scale); a tap is judged by its worst row.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "emu/judge/expected.h"
#include "emu/run/tap.h"

namespace shardproof {

/// One element that a rank got wrong.
struct WorstElement {
  double error = 0;  ///< relative to the row's scale; infinite when the value is not finite
  std::int64_t row = 0;
  std::int64_t col = 0;
  double expected = 0;
  double got = 0;
};

/// What a run made of one expected tap.
struct TapOutcome {
  bool seen = false;  ///< any rank tapped it
  WorstElement worst;
  std::vector<WorstElement> rank_worst;  ///< indexed by rank; error 0 where a rank has no part
  double norm = 0;                       ///< square root of the sum of squares, block by block
  std::uint64_t bits = 0;                ///< hash of every block's place and bits, whoever holds it
  bool replicas_equal = true;
  std::vector<int> odd_replicas;  ///< ranks that differ from the lowest rank that holds the same block
  /// What is wrong with the parts themselves: shape, overlap, elements that no rank holds. Empty when nothing is.
  std::string problem;
  std::vector<int> problem_ranks;
  /// For taps of ids: the first rank's value of every element, [rows * cols]; -1 where none arrived.
  std::vector<std::int32_t> ids;
};

class TapCollector final : public TapSink {
 public:
  /// Called with a tap's name when every element of it has arrived, from the thread that brought the last.
  using Completed = std::function<void(const std::string& name)>;

  /// `expected` and `mesh` outlive the collector. In `exact_ids`, a row of ids must be equal in order too.
  TapCollector(const ExpectedTaps& expected, const Mesh& mesh, bool exact_ids, Completed completed = {});
  ~TapCollector() override;

  void tap(GlobalRank rank, std::string_view name, const Placement& placement, const TapValues& part) override;

  /// After the run: sums the addends, looks for what never came; one outcome for each expected tap.
  std::vector<TapOutcome> finish();
  /// Names that a rank tapped and nothing is expected of.
  std::vector<std::string> unexpected() const;

 private:
  struct State;

  template <class T>
  void collect(GlobalRank rank, std::string_view name, const Placement& placement, ops::MatrixView<const T> part);

  const ExpectedTaps& expected_;
  const Mesh& mesh_;
  bool exact_ids_;
  Completed completed_;
  std::vector<std::unique_ptr<State>> states_;
  mutable std::mutex mutex_;
  std::vector<std::string> unexpected_;
};

}  // namespace shardproof
