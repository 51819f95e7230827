#include "emu/judge/rounding/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "emu/judge/expected.h"

namespace shardproof::rounding {

void Comparison::settle(double whole) {
  settled_ = candidate_.measure;
  WorstElement element = candidate_;
  element.bound = whole;
  note(element);
}

void Comparison::overflow(std::int64_t row, std::int64_t col, double value) {
  if (!judged_.not_finite.empty()) return;
  judged_.not_finite = fmt::format("{:.6g} at row {}, column {}, is beyond the format's largest value, {:.6g}", value,
                                   row, col, profile_.largest);
}

void Comparison::note(WorstElement element) {
  if (!std::isfinite(element.expected) || !std::isfinite(element.bound)) {
    if (judged_.not_finite.empty()) {
      judged_.not_finite = fmt::format(
          "what its row {}, column {}, is computed from, inputs or weights, is not finite, or no bound can be given",
          element.row, element.col);
    }
    return;
  }
  if (!std::isfinite(element.got) && std::abs(element.expected) + element.bound >= profile_.largest) {
    return overflow(element.row, element.col, element.expected);
  }
  const bool right = element.error <= element.bound;
  element.measure = element.error == 0  ? 0
                    : element.bound > 0 ? element.error / element.bound
                                        : std::numeric_limits<double>::infinity();
  if (std::isnan(element.measure)) element.measure = std::numeric_limits<double>::infinity();
  if (std::isnan(element.error)) element.error = std::numeric_limits<double>::infinity();
  if (element.measure > judged_.worst.measure) judged_.worst = element;
  if (right) return;
  const std::int64_t begin = *std::prev(std::ranges::upper_bound(cuts_, element.col));
  WorstElement& worst = judged_.wrong[{element.row, begin}];
  if (element.measure > worst.measure) worst = element;
}

Judged Comparison::finish() && {
  if (seen_ && same_ && first_ == 0) judged_.vacuous = "zero";
  if (seen_ && same_ && first_ != 0 && got_.rows * got_.cols > 1) judged_.vacuous = kConstant;
  judged_.done = true;
  return std::move(judged_);
}

}  // namespace shardproof::rounding
