#include "emu/judge/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "emu/judge/hash.h"

namespace shardproof {
namespace {

bool is_wrong(const WorstElement& worst) {
  return !(worst.error <= worst.bound);
}

TapVerdict verdict_of(const TapOutcome& outcome) {
  const bool parts_fit = outcome.problem.empty() || outcome.missing();
  if (!parts_fit || !outcome.replicas_equal || is_wrong(outcome.worst)) return TapVerdict::mismatch;
  return outcome.missing() ? TapVerdict::missing : TapVerdict::pass;
}

/// What of a run proves nothing, known before it is judged.
struct Doubts {
  std::vector<Problem> problems;
  std::vector<bool> agreement;    ///< of each tap: that it agrees would prove nothing
  std::size_t reliable_taps = 0;  ///< so many, in program order, differ for no reason but a wrong run
};

Doubts doubts_of(const Evidence& evidence) {
  const std::vector<ExpectedTap>& taps = evidence.expected.all();
  Doubts doubts{.problems = evidence.problems, .agreement = std::vector<bool>(taps.size())};
  for (const std::string& name : evidence.unexpected) {
    doubts.problems.push_back({name, "a rank tapped it, but nothing is expected of that name"});
  }
  if (taps.empty()) doubts.problems.push_back({"expected", "no tap is expected: the run proves nothing"});
  doubts.reliable_taps = taps.size();
  const auto distrust_from = [&](std::size_t tap) { doubts.reliable_taps = std::min(doubts.reliable_taps, tap); };
  for (Problem& problem : beyond_budget(evidence.sums)) {
    const int tap = evidence.expected.find(problem.field);
    if (tap >= 0) {
      doubts.agreement[static_cast<std::size_t>(tap)] = true;
      distrust_from(static_cast<std::size_t>(tap));
    }
    doubts.problems.push_back(std::move(problem));
  }
  bool undecided = false;
  for (std::size_t i = 0; i < taps.size(); ++i) {
    const TapOutcome& outcome = evidence.outcomes[i];
    if (!outcome.undecided.empty()) {
      // One is enough: what comes after it is computed from it.
      if (!std::exchange(undecided, true)) doubts.problems.push_back({taps[i].name, outcome.undecided});
      doubts.agreement[i] = true;
      continue;
    }
    if (taps[i].vacuous == kNotFinite) distrust_from(i);
    const std::string& vacuous = outcome.vacuous.empty() ? taps[i].vacuous : outcome.vacuous;
    if (vacuous.empty() || (vacuous == kConstant && taps[i].traits.constant_by_nature)) continue;
    doubts.agreement[i] = true;
    doubts.problems.push_back(
        {taps[i].name,
         fmt::format("the reference's values are {}: agreement would prove nothing{}", vacuous, evidence.remedy)});
  }
  return doubts;
}

/// The figures of a tap; its verdict is judge()'s.
TapReport describe(const Evidence& evidence, std::size_t index) {
  const ExpectedTap& expected = evidence.expected.all()[index];
  const TapOutcome& outcome = evidence.outcomes[index];
  TapReport report{.name = expected.name,
                   .kind = expected.kind,
                   .inner = expected.id && tap_row(expected.id->kind).inner,
                   .max_error = outcome.worst.error,
                   .bound = outcome.worst.bound,
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

std::vector<int> wrong_ranks(const TapOutcome& outcome) {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < outcome.rank_worst.size(); ++rank) {
    if (is_wrong(outcome.rank_worst[rank])) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

/// Both with as many digits as it takes to tell them apart.
std::string expected_and_got(double expected, double got) {
  for (const int digits : {6, 9, 12, 15}) {
    const std::string wanted = fmt::format("{:.{}g}", expected, digits), came = fmt::format("{:.{}g}", got, digits);
    if (wanted != came) return fmt::format("expected {}, got {}", wanted, came);
  }
  return fmt::format("expected {:.17g}, got {:.17g}", expected, got);
}

/// Where an element is: the row of a tap of slots is one choice of a token.
std::string place_text(const ExpectedTap& tap, const Divergence& divergence, const ModelConfig& model) {
  if (!tap.dims.empty()) {
    std::vector<std::int64_t> index(tap.dims.size(), divergence.col);
    std::int64_t row = divergence.row;
    for (std::size_t i = tap.dims.size() - 1; i-- > 0; row /= tap.dims[i]) index[i] = row % tap.dims[i];
    return fmt::format("index [{}]", fmt::join(index, ", "));
  }
  if (!tap.id || !tap_row(tap.id->kind).slots) {
    return fmt::format("token {}, element {}", divergence.row, divergence.col);
  }
  const std::int64_t top_k = model.layers[tap.id->layer].feed_forward.top_k;
  return fmt::format("token {}, choice {}, element {}", divergence.row / top_k, divergence.row % top_k, divergence.col);
}

std::string divergence_message(const ExpectedTap& tap, const TapOutcome& outcome, const Divergence& divergence,
                               const ModelConfig& model) {
  if (!outcome.problem.empty()) return outcome.problem;
  if (is_wrong(outcome.worst)) {
    return fmt::format("{} at {}: off by {:.3g}, bound {:.3g}", expected_and_got(divergence.expected, divergence.got),
                       place_text(tap, divergence, model), divergence.error, divergence.bound);
  }
  std::string text =
      fmt::format("ranks {} hold bits that differ from their replicas'", fmt::join(divergence.ranks, ", "));
  if (const std::optional<OddElement>& odd = outcome.odd_element) {
    text += fmt::format(": rank {} has {:.17g} at row {}, column {}, rank {} {:.17g}", odd->rank, odd->value, odd->row,
                        odd->col, odd->others, odd->value_of_others);
  }
  return text;
}

Divergence divergence_of(const Evidence& evidence, std::size_t index, TapVerdict verdict, const ModelConfig& model) {
  const ExpectedTap& tap = evidence.expected.all()[index];
  const TapOutcome& outcome = evidence.outcomes[index];
  Divergence divergence{.tap = tap.name,
                        .verdict = verdict,
                        .ranks = wrong_ranks(outcome),
                        .row = outcome.worst.row,
                        .col = outcome.worst.col,
                        .expected = outcome.worst.expected,
                        .got = outcome.worst.got,
                        .error = outcome.worst.error,
                        .bound = outcome.worst.bound,
                        .message = {}};
  if (divergence.ranks.empty()) {
    divergence.ranks = outcome.replicas_equal ? outcome.problem_ranks : outcome.odd_replicas;
  }
  divergence.message = divergence_message(tap, outcome, divergence, model);
  return divergence;
}

}  // namespace

void judge(const Evidence& evidence, VerifyReport& report) {
  const Doubts doubts = doubts_of(evidence);
  bool proven_wrong = false;
  for (std::size_t i = 0; i < evidence.expected.all().size(); ++i) {
    const TapOutcome& outcome = evidence.outcomes[i];
    TapReport& tap = report.taps.emplace_back(describe(evidence, i));
    const TapVerdict found = verdict_of(outcome);
    const bool proves = found == TapVerdict::pass ? !doubts.agreement[i] : i < doubts.reliable_taps;
    tap.verdict = proves || found == TapVerdict::missing ? found : TapVerdict::inconclusive;
    if (found == TapVerdict::missing) tap.max_error = std::numeric_limits<double>::infinity();
    if (found == TapVerdict::pass || report.first_divergence) continue;
    report.first_divergence = divergence_of(evidence, i, found, report.plan.model);
    proven_wrong = proves;
  }
  report.problems = doubts.problems;
  report.verdict = proven_wrong                                          ? Verdict::mismatch
                   : report.first_divergence || !report.problems.empty() ? Verdict::inconclusive
                                                                         : Verdict::pass;
}

void note_stall(Stall stall, VerifyReport& report) {
  report.verdict = Verdict::deadlock;
  report.stall = std::move(stall);
  report.problems.clear();
  if (report.first_divergence && report.first_divergence->verdict != TapVerdict::mismatch) {
    report.first_divergence.reset();
  }
}

}  // namespace shardproof
