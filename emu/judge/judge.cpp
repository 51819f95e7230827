#include "emu/judge/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "emu/judge/hash.h"
#include "emu/judge/verify.h"

namespace shardproof {
namespace {

/// Experts of one list that are not in the other.
std::vector<std::int32_t> difference(std::vector<std::int32_t> from, std::vector<std::int32_t> other) {
  std::ranges::sort(from);
  std::ranges::sort(other);
  std::vector<std::int32_t> result;
  std::ranges::set_difference(from, other, std::back_inserter(result));
  return result;
}

struct ChoiceRow {
  std::vector<std::int32_t> expected;
  std::vector<std::int32_t> got;
};

ChoiceRow choice_row(const ExpectedTap& expected, const TapOutcome& outcome, std::int64_t row) {
  ChoiceRow result;
  for (std::int64_t col = 0; col < expected.cols; ++col) {
    result.expected.push_back(static_cast<std::int32_t>(expected.at(row, col)));
    result.got.push_back(outcome.ids[static_cast<std::size_t>(row * expected.cols + col)]);
  }
  return result;
}

/// The first place of `got` whose expert stands there once more than in `expected`; there is one.
std::int64_t first_surplus(const ChoiceRow& choice) {
  auto at = choice.got.begin();
  while (std::count(choice.got.begin(), at + 1, *at) <= std::ranges::count(choice.expected, *at)) ++at;
  return at - choice.got.begin();
}

/// How far the reference's logits put the experts that it chose above those that the run chose instead.
double choice_margin(const ExpectedTap& logits, std::int64_t row, const ChoiceRow& choice) {
  std::vector<std::int32_t> got = choice.got;
  std::ranges::sort(got);
  // No rounding makes a router choose an expert twice.
  if (std::ranges::adjacent_find(got) != got.end()) return std::numeric_limits<double>::infinity();
  double margin = 0;
  for (const std::int32_t dropped : difference(choice.expected, choice.got)) {
    for (const std::int32_t taken : difference(choice.got, choice.expected)) {
      if (taken < 0 || taken >= logits.cols) return std::numeric_limits<double>::infinity();
      margin = std::max(margin, logits.at(row, dropped) - logits.at(row, taken));
    }
  }
  return margin;
}

/// What a report says of a tap before its error is judged.
TapReport describe(const ExpectedTap& expected, const TapOutcome& outcome, ops::Format format) {
  TapReport report{.name = expected.name,
                   .max_error = outcome.worst.error,
                   .replicas_equal = outcome.replicas_equal,
                   .rows = expected.rows,
                   .cols = expected.cols,
                   .norm = outcome.norm,
                   .bits = outcome.bits};
  const bool agrees = outcome.worst.error == 0 && outcome.problem.empty() && outcome.replicas_equal;
  if (format == ops::Format::exact && agrees) {
    // The run's values are the expected ones, whatever blocks they came in.
    report.norm = norm_of(expected.values);
    report.exact_hash = hash_bits(expected.values);
  }
  return report;
}

std::vector<int> ranks_beyond(const TapOutcome& outcome, double bound) {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < outcome.rank_worst.size(); ++rank) {
    if (outcome.rank_worst[rank].error > bound) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

std::string divergence_message(const TapOutcome& outcome, const Divergence& divergence) {
  if (!outcome.problem.empty()) return outcome.problem;
  if (divergence.error > divergence.bound) {
    return fmt::format(
        "expected {:.9g}, got {:.9g} at token {}, element {}: error {:.3g} of the row's scale, bound {:.3g}",
        divergence.expected, divergence.got, divergence.row, divergence.col, divergence.error, divergence.bound);
  }
  return fmt::format("ranks {} hold bits that differ from their replicas'", fmt::join(divergence.ranks, ", "));
}

}  // namespace

double error_bound(double unsharded, std::int64_t values, std::int64_t width, ops::Format format) {
  if (format == ops::Format::exact) return 0;
  const auto count = static_cast<double>(std::max<std::int64_t>(1, values));
  const auto independent = static_cast<double>(std::max<std::int64_t>(1, std::min(values, width)));
  const double chance =
      std::min(kUsualRatio * std::pow(kSmallByChance, -1 / independent) * unsharded, kLargestByChance);
  return std::max({kAmplificationBound * (1 + kSmallSample / std::sqrt(count)) * unsharded,
                   kRoundoffFloor * ops::unit_roundoff(format), chance});
}

std::string tap_kind(const std::string& name) {
  return name.starts_with("layer.") ? name.substr(name.find('.', 6) + 1) : name;
}

std::vector<TapReport> report_taps(const ExpectedTaps& expected, const std::vector<TapOutcome>& unsharded,
                                   const std::vector<TapOutcome>& sharded, ops::Format format) {
  std::vector<TapReport> reports;
  std::map<std::string, double> worst_so_far;
  for (std::size_t i = 0; i < expected.all().size(); ++i) {
    const double base = unsharded[i].worst.error;
    const double error = sharded[i].worst.error;
    const ExpectedTap& tap = expected.all()[i];
    TapReport& report = reports.emplace_back(describe(tap, sharded[i], format));
    // Ids have no size of error: what is left after judge_routing is wrong.
    if (tap.ids) continue;
    double& worst = worst_so_far[tap_kind(tap.name)];
    worst = std::max(worst, base);
    // An unsharded error of zero happens by luck; one rounding is the least that makes a ratio meaningful.
    const double unit = std::max(base, ops::unit_roundoff(format));
    const double amplification = error == base ? 1 : unit > 0 ? error / unit : std::numeric_limits<double>::infinity();
    report.bound = error_bound(worst, std::ssize(tap.values), expected.all().front().cols, format);
    report.amplification = amplification;
  }
  return reports;
}

bool any_choice_differs(const ExpectedTaps& expected, const std::vector<TapOutcome>& outcomes) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (expected.all()[i].ids && outcomes[i].worst.error > 0) return true;
  }
  return false;
}

RoutingReport judge_routing(const ExpectedTaps& expected, const std::vector<TapReport>& taps,
                            std::vector<TapOutcome>& sharded, ops::Format format) {
  RoutingReport report;
  for (std::size_t i = 0; i < expected.all().size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (!tap.ids || sharded[i].ids.empty()) continue;
    // The program taps the logits just before the choice.
    const ExpectedTap& logits = expected.all()[i - 1];
    TapOutcome& outcome = sharded[i];
    report.tokens += tap.rows;
    if (outcome.worst.error == 0) continue;
    if (format == ops::Format::exact) {
      for (std::int64_t row = 0; row < tap.rows; ++row) {
        const ChoiceRow choice = choice_row(tap, outcome, row);
        report.flipped += choice.got != choice.expected ? 1 : 0;
      }
      continue;
    }
    WorstElement worst;
    for (std::int64_t row = 0; row < tap.rows; ++row) {
      const ChoiceRow choice = choice_row(tap, outcome, row);
      if (difference(choice.got, choice.expected).empty()) continue;
      const double rounding = 2 * taps[i - 1].bound * logits.scale[static_cast<std::size_t>(row)];
      if (choice_margin(logits, row, choice) <= rounding) {
        ++report.ambiguous;
        continue;
      }
      ++report.flipped;
      if (worst.error == 0) {
        const std::int64_t col = first_surplus(choice);
        worst = {std::numeric_limits<double>::infinity(), row, col, tap.at(row, col),
                 static_cast<double>(choice.got[static_cast<std::size_t>(col)])};
      }
    }
    outcome.worst = worst;
    if (worst.error == 0) std::ranges::fill(outcome.rank_worst, WorstElement{});
  }
  return report;
}

std::optional<Divergence> first_divergence(const std::vector<TapReport>& taps, const std::vector<TapOutcome>& sharded) {
  for (std::size_t i = 0; i < taps.size(); ++i) {
    const TapOutcome& outcome = sharded[i];
    const bool wrong = !outcome.problem.empty() || outcome.worst.error > taps[i].bound || !outcome.replicas_equal;
    if (!wrong) continue;
    Divergence divergence{.tap = taps[i].name,
                          .ranks = ranks_beyond(outcome, taps[i].bound),
                          .row = outcome.worst.row,
                          .col = outcome.worst.col,
                          .expected = outcome.worst.expected,
                          .got = outcome.worst.got,
                          .error = outcome.worst.error,
                          .bound = taps[i].bound,
                          .message = {}};
    if (divergence.ranks.empty()) {
      divergence.ranks = outcome.replicas_equal ? outcome.problem_ranks : outcome.odd_replicas;
    }
    divergence.message = divergence_message(outcome, divergence);
    return divergence;
  }
  return std::nullopt;
}

}  // namespace shardproof
