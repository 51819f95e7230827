// Holds the elements of one tensor to what its op should give, each within its own bound.
//
// What a bound takes to compute is often as much as the element itself. Hence three steps: an error within `least`, a
// bound that is certainly not too wide, passes; any other is held to the whole bound; and where `likely`, an estimate
// of the whole bound, makes the error of an element that passed the worst so far, its whole bound is computed too, so
// that the worst share is that of a real bound.
//
// Of a tensor that the run did not hand in, the same two are kept instead: what its op should give, and each element's
// whole bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/rounding/bounds.h"
#include "emu/judge/rounding/run_tensors.h"

namespace shardproof::rounding {

/// What came of a tensor.
struct Judged {
  WorstElement worst;  ///< of all; error and bound are absolute, measure their ratio
  /// The worst element of each row that has a wrong one, in each range of columns that ranks hold apart.
  std::map<std::pair<std::int64_t, std::int64_t>, WorstElement> wrong;
  std::string not_finite;  ///< why nothing is to be said of it: its format overflowed, or its inputs are not finite
  std::string vacuous;     ///< "zero", "constant": agreement proves nothing
  bool done = false;
};

class Comparison {
 public:
  /// `column_cuts`: where the columns that a rank holds begin, ascending from 0.
  Comparison(const Profile& profile, const RunTensor& got, std::vector<std::int64_t> column_cuts)
      : profile_(profile), got_(got), cuts_(std::move(column_cuts)) {}

  /// For a tensor that is not there: what is computed of it goes into `made`, which outlives the comparison.
  Comparison(const Profile& profile, RunTensor& made) : profile_(profile), got_(made), made_(&made) {}

  /// What is expected is held within -limit..limit, unless that is 0: no error grows by it.
  Comparison&& held_within(double limit) && {
    if (limit > 0) limit_ = limit;
    return std::move(*this);
  }

  const Profile& profile() const { return profile_; }
  const RunTensor& got() const { return got_; }

  /// `whole()` is the bound of the element's error. True: it is the candidate for the worst share.
  template <class Whole>
  bool element(std::int64_t row, std::int64_t col, double expected, double least, double likely, const Whole& whole) {
    expected = std::clamp(expected, -limit_, limit_);
    if (made_ != nullptr) {
      keep(row, col, expected, whole());
      return false;
    }
    const double got = got_.at(row, col);
    const double error = std::abs(got - expected);
    see(expected);
    if (!(error <= least)) {
      note({error, whole(), 0, row, col, expected, got});
      return false;
    }
    // A bound of zero is kept by equality alone, and equality is no error.
    if (!(error > candidate_.measure * likely)) return false;
    candidate_ = {error, likely, error / likely, row, col, expected, got};
    return true;
  }
  /// The same where the bound is cheap.
  void element(std::int64_t row, std::int64_t col, double expected, double bound) {
    expected = std::clamp(expected, -limit_, limit_);
    if (made_ != nullptr) return keep(row, col, expected, bound);
    const double got = got_.at(row, col);
    const double error = std::abs(got - expected);
    see(expected);
    if (!(error <= std::min(1.0, judged_.worst.measure) * bound)) note({error, bound, 0, row, col, expected, got});
  }

  /// Whether there is a new candidate, whose bound is to be settled while what it takes is at hand.
  bool candidate() const { return candidate_.measure > settled_; }
  /// Its whole bound.
  void settle(double whole);

  /// The first value that the format cannot hold: from here on nothing is to be said.
  void overflow(std::int64_t row, std::int64_t col, double value);

  Judged finish() &&;

 private:
  void see(double expected) {
    if (!seen_) first_ = expected;
    seen_ = true;
    same_ = same_ && expected == first_;
  }
  void note(WorstElement element);
  void keep(std::int64_t row, std::int64_t col, double expected, double bound) {
    made_->doubles(row, col) = expected;
    made_->errors(row, col) = bound;
  }

  double limit_ = std::numeric_limits<double>::infinity();
  const Profile& profile_;
  const RunTensor& got_;
  RunTensor* made_ = nullptr;
  std::vector<std::int64_t> cuts_;
  Judged judged_;
  WorstElement candidate_;
  double settled_ = 0;  // the measure of the last candidate whose bound is known
  bool seen_ = false;
  bool same_ = true;
  double first_ = 0;
};

}  // namespace shardproof::rounding
