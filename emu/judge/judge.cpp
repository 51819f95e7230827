#include "emu/judge/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <utility>

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

TapVerdict verdict_of(const TapOutcome& outcome, double bound) {
  const bool parts_fit = outcome.problem.empty() || outcome.missing();
  if (!parts_fit || !outcome.replicas_equal || !(outcome.worst.error <= bound)) return TapVerdict::mismatch;
  return outcome.missing() ? TapVerdict::missing : TapVerdict::pass;
}

/// What of a run proves nothing, known before it is judged.
struct Doubts {
  std::vector<Problem> problems;
  std::vector<bool> agreement;    ///< of each tap: that it agrees would prove nothing
  std::size_t reliable_taps = 0;  ///< so many, in program order, differ for no reason but a wrong run
};

/// The first tap, if any, that the format rounds so much that its bound would let anything pass.
void doubt_bounds(const Evidence& evidence, Doubts& doubts) {
  if (evidence.format == ops::Format::exact) return;
  bool first = true;
  for (std::size_t i = 0; i < evidence.bounds.size(); ++i) {
    if (evidence.bounds[i] < kLargestBound) continue;
    doubts.agreement[i] = true;
    if (!std::exchange(first, false)) continue;
    doubts.problems.push_back(
        {evidence.expected.all()[i].name,
         fmt::format("the unsharded run in {} is off by so much that the bound of {:.3g} of a row's scale would let "
                     "anything pass; use smaller weights, fewer layers or a wider format",
                     ops::to_string(evidence.format), evidence.bounds[i])});
  }
}

Doubts doubts_of(const Evidence& evidence) {
  const std::vector<ExpectedTap>& taps = evidence.expected.all();
  Doubts doubts{.problems = evidence.problems, .agreement = std::vector<bool>(taps.size())};
  for (const std::string& name : evidence.unexpected) {
    doubts.problems.push_back({name, "a rank tapped it, but nothing is expected of that name"});
  }
  if (taps.empty()) doubts.problems.push_back({"expected", "no tap is expected: the run proves nothing"});
  doubts.reliable_taps = evidence.bounds_hold ? taps.size() : 0;
  const auto distrust_from = [&](std::size_t tap) { doubts.reliable_taps = std::min(doubts.reliable_taps, tap); };
  for (Problem& problem : beyond_budget(evidence.sums)) {
    const int tap = evidence.expected.find(problem.field);
    if (tap >= 0) {
      doubts.agreement[static_cast<std::size_t>(tap)] = true;
      distrust_from(static_cast<std::size_t>(tap));
    }
    doubts.problems.push_back(std::move(problem));
  }
  for (std::size_t i = 0; i < taps.size(); ++i) {
    if (taps[i].vacuous == kNotFinite) distrust_from(i);
    if (!taps[i].proves_nothing()) continue;
    doubts.agreement[i] = true;
    doubts.problems.push_back(
        {taps[i].name, fmt::format("the reference's values are {}: agreement would prove nothing{}", taps[i].vacuous,
                                   evidence.remedy)});
  }
  doubt_bounds(evidence, doubts);
  return doubts;
}

/// The figures of a tap; its verdict is judge()'s.
TapReport describe(const Evidence& evidence, std::size_t index) {
  const ExpectedTap& expected = evidence.expected.all()[index];
  const TapOutcome& outcome = evidence.sharded[index];
  TapReport report{.name = expected.name,
                   .kind = expected.kind,
                   .max_error = outcome.worst.error,
                   .bound = evidence.bounds[index],
                   .replicas_equal = outcome.replicas_equal,
                   .rows = expected.rows,
                   .cols = expected.cols,
                   .norm = outcome.norm,
                   .bits = outcome.bits};
  const bool agrees = outcome.worst.error == 0 && outcome.problem.empty() && outcome.replicas_equal;
  if (evidence.format == ops::Format::exact && agrees) {
    // The run's values are the expected ones, whatever blocks they came in.
    report.norm = norm_of(expected.values);
    report.exact_hash = hash_bits(expected.values);
  }
  return report;
}

/// How much worse than the unsharded run. Ids have no size of error: what judge_routing leaves of one is wrong.
double amplification(const Evidence& evidence, std::size_t index, double error) {
  if (evidence.expected.all()[index].traits.ids) return 1;
  const double base = evidence.unsharded[index].worst.error;
  if (error == base) return 1;
  // An unsharded error of zero happens by luck; one rounding is the least that makes a ratio meaningful.
  const double unit = std::max(base, ops::unit_roundoff(evidence.format));
  return unit > 0 ? error / unit : std::numeric_limits<double>::infinity();
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

Divergence divergence_of(const TapReport& tap, TapVerdict verdict, const TapOutcome& outcome) {
  Divergence divergence{.tap = tap.name,
                        .verdict = verdict,
                        .ranks = ranks_beyond(outcome, tap.bound),
                        .row = outcome.worst.row,
                        .col = outcome.worst.col,
                        .expected = outcome.worst.expected,
                        .got = outcome.worst.got,
                        .error = outcome.worst.error,
                        .bound = tap.bound,
                        .message = {}};
  if (divergence.ranks.empty()) {
    divergence.ranks = outcome.replicas_equal ? outcome.problem_ranks : outcome.odd_replicas;
  }
  divergence.message = divergence_message(outcome, divergence);
  return divergence;
}

}  // namespace

double error_bound(const ErrorsSeen& seen, ops::Format format) {
  if (format == ops::Format::exact) return 0;
  const auto count = static_cast<double>(std::max<std::int64_t>(1, seen.values));
  const auto independent = static_cast<double>(std::max<std::int64_t>(1, std::min(seen.values, seen.width)));
  const double chance =
      std::min(kUsualRatio * std::pow(kSmallByChance, -1 / independent) * seen.unsharded, kLargestByChance);
  return std::max({kAmplificationBound * (1 + kSmallSample / std::sqrt(count)) * seen.unsharded,
                   kRoundoffFloor * ops::unit_roundoff(format), chance});
}

std::vector<double> error_bounds(const ExpectedTaps& expected, std::span<const TapOutcome> unsharded,
                                 ops::Format format) {
  std::vector<double> bounds(expected.all().size());
  std::map<std::string, double> worst_so_far;
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (tap.traits.ids) continue;
    double& worst = worst_so_far[tap.kind];
    worst = std::max(worst, unsharded[i].worst.error);
    bounds[i] = error_bound(
        {.unsharded = worst, .values = std::ssize(tap.values), .width = expected.all().front().cols}, format);
  }
  return bounds;
}

bool any_choice_differs(const ExpectedTaps& expected, std::span<const TapOutcome> outcomes) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (expected.all()[i].traits.ids && outcomes[i].worst.error > 0) return true;
  }
  return false;
}

RoutingReport judge_routing(const ExpectedTaps& expected, std::span<const double> bounds,
                            std::vector<TapOutcome>& sharded, ops::Format format) {
  RoutingReport report;
  for (std::size_t i = 0; i < expected.all().size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (!tap.id || !tap.traits.ids || sharded[i].ids.empty()) continue;
    const auto at = static_cast<std::size_t>(expected.find({.layer = tap.id->layer, .kind = TapKind::router_logits}));
    const ExpectedTap& logits = expected.all().at(at);
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
      const double rounding = 2 * bounds[at] * logits.scale[static_cast<std::size_t>(row)];
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

void judge(const Evidence& evidence, VerifyReport& report) {
  const Doubts doubts = doubts_of(evidence);
  bool proven_wrong = false;
  for (std::size_t i = 0; i < evidence.expected.all().size(); ++i) {
    const TapOutcome& outcome = evidence.sharded[i];
    TapReport& tap = report.taps.emplace_back(describe(evidence, i));
    const TapVerdict found = verdict_of(outcome, tap.bound);
    const bool proves = found == TapVerdict::pass ? !doubts.agreement[i] : i < doubts.reliable_taps;
    tap.verdict = proves || found == TapVerdict::missing ? found : TapVerdict::inconclusive;
    if (found == TapVerdict::missing) tap.max_error = std::numeric_limits<double>::infinity();
    tap.amplification = amplification(evidence, i, tap.max_error);
    if (found == TapVerdict::pass || report.first_divergence) continue;
    report.first_divergence = divergence_of(tap, found, outcome);
    proven_wrong = proves;
  }
  report.problems = doubts.problems;
  report.verdict = proven_wrong                                          ? Verdict::mismatch
                   : report.first_divergence || !report.problems.empty() ? Verdict::inconclusive
                                                                         : Verdict::pass;
}

}  // namespace shardproof
