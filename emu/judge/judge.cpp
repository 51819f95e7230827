#include "emu/judge/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "emu/judge/digits.h"
#include "emu/judge/hash.h"
#include "emu/plan/token_map.h"

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
    if (!outcome.not_judged.empty()) continue;
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
  for (const auto& [rank, worst] : outcome.rank_worst) {
    if (is_wrong(worst)) ranks.push_back(rank);
  }
  return ranks;
}

/// "[1, 0, 3]", of a tensor whose dims but the last are folded into rows.
std::string index_text(const ExpectedTap& tap, std::int64_t row, std::int64_t col) {
  std::vector<std::int64_t> index(tap.dims.size(), col);
  for (std::size_t i = tap.dims.size() - 1; i-- > 0; row /= tap.dims[i]) index[i] = row % tap.dims[i];
  return fmt::format("[{}]", fmt::join(index, ", "));
}

/// How many rows a token has: of a tap of slots one for each choice.
std::int64_t choices_of(const ExpectedTap& tap, const ModelConfig& model) {
  const bool slots = tap.id && tap_row(tap.id->kind).slots;
  return slots ? model.layers[tap.id->layer].feed_forward.top_k : 1;
}

std::optional<ServedAt> served_at(const Plan& plan, const ExpectedTap& tap, std::int64_t row) {
  if (!plan.workload.serving || !tap.id) return std::nullopt;
  const TokenMap tokens(plan.parallel, plan.workload);
  const std::int64_t token = row / choices_of(tap, plan.model);
  return ServedAt{.step = tokens.step_of(tokens.home(token).microbatch),
                  .request = tokens.sequence_of(token),
                  .position = tokens.position(token)};
}

/// Where an element is: the row of a tap of slots is one choice of a token.
std::string place_text(const ExpectedTap& tap, const Divergence& divergence, const ModelConfig& model) {
  if (!tap.dims.empty()) return fmt::format("index {}", index_text(tap, divergence.row, divergence.col));
  std::string served;
  if (divergence.served) {
    const ServedAt& at = *divergence.served;
    served = fmt::format(" (position {} of request {}, in step {})", at.position, at.request, at.step);
  }
  const std::int64_t choices = choices_of(tap, model);
  const std::string choice = choices > 1 ? fmt::format(", choice {}", divergence.row % choices) : "";
  return fmt::format("token {}{}{}, element {}", divergence.row / choices, served, choice, divergence.col);
}

std::string wrong_value_message(const ExpectedTap& tap, const Divergence& divergence, const ModelConfig& model) {
  const auto [expected, got] = told_apart(divergence.expected, divergence.got);
  const auto [error, bound] = told_apart(divergence.error, divergence.bound, 3);
  return fmt::format("expected {}, got {} at {}: off by {}, bound {}", expected, got,
                     place_text(tap, divergence, model), error, bound);
}

std::string odd_replica_message(const ExpectedTap& tap, const TapOutcome& outcome) {
  std::string text =
      fmt::format("ranks {} hold bits that differ from their replicas'", fmt::join(outcome.odd_replicas, ", "));
  if (const std::optional<OddElement>& odd = outcome.odd_element) {
    const auto [value, others] = told_apart(odd->value, odd->value_of_others);
    const std::string place = tap.dims.empty() ? fmt::format("row {}, column {}", odd->row, odd->col)
                                               : fmt::format("index {}", index_text(tap, odd->row, odd->col));
    text += fmt::format(": rank {} has {} at {}, rank {} has {}", odd->rank, value, place, odd->others, others);
  }
  return text;
}

Divergence divergence_of(const Evidence& evidence, std::size_t index, TapVerdict verdict, const Plan& plan) {
  const ExpectedTap& tap = evidence.expected.all()[index];
  const TapOutcome& outcome = evidence.outcomes[index];
  Divergence divergence{.tap = tap.name,
                        .verdict = verdict,
                        .ranks = wrong_ranks(outcome),
                        .row = outcome.worst.row,
                        .col = outcome.worst.col,
                        .served = served_at(plan, tap, outcome.worst.row),
                        .expected = outcome.worst.expected,
                        .got = outcome.worst.got,
                        .error = outcome.worst.error,
                        .bound = outcome.worst.bound,
                        .message = {}};
  // What is wrong with the parts comes before what is wrong in them, and what is missing last: ranks and message are of
  // the same one.
  const bool parts_fit = outcome.problem.empty() || outcome.missing();
  if (parts_fit && is_wrong(outcome.worst)) {
    divergence.message = wrong_value_message(tap, divergence, plan.model);
  } else if (parts_fit && !outcome.replicas_equal) {
    divergence.message = odd_replica_message(tap, outcome);
    divergence.ranks = outcome.odd_replicas;
  } else {
    divergence.message = outcome.problem;
    divergence.ranks = outcome.problem_ranks;
  }
  return divergence;
}

/// A rank hands in a part before the call that it never leaves; of different ranks nothing orders the two.
std::string which_came_first(const Divergence& divergence, const Stall& stall) {
  const std::vector<int> stuck = stuck_ranks(stall);
  std::vector<int> both;
  std::ranges::copy_if(divergence.ranks, std::back_inserter(both),
                       [&](int rank) { return std::ranges::find(stuck, rank) != stuck.end(); });
  if (both.empty()) {
    return fmt::format("{} was wrong too, on ranks that the stall does not hold: neither need explain the other",
                       divergence.tap);
  }
  return fmt::format("{} was wrong on rank{} {} before the call that the run stalled in: it came first", divergence.tap,
                     both.size() == 1 ? "" : "s", fmt::join(both, ", "));
}

}  // namespace

void judge(const Evidence& evidence, VerifyReport& report) {
  const Doubts doubts = doubts_of(evidence);
  bool proven_wrong = false;
  struct Missing {
    std::size_t tap;
    bool proves;
  };
  std::optional<Missing> first_missing;
  for (std::size_t i = 0; i < evidence.expected.all().size(); ++i) {
    const TapOutcome& outcome = evidence.outcomes[i];
    TapReport& tap = report.taps.emplace_back(describe(evidence, i));
    const TapVerdict found = verdict_of(outcome);
    const bool proves = found == TapVerdict::pass ? !doubts.agreement[i] : i < doubts.reliable_taps;
    tap.verdict = proves || found == TapVerdict::missing ? found : TapVerdict::inconclusive;
    if (found == TapVerdict::pass && !outcome.not_judged.empty()) tap.verdict = TapVerdict::not_judged;
    if (found == TapVerdict::missing) tap.max_error = std::numeric_limits<double>::infinity();
    if (found == TapVerdict::pass || report.first_divergence) continue;
    if (found == TapVerdict::missing && evidence.stalled) continue;  // the stall explains it
    if (found == TapVerdict::missing && evidence.failed) {
      if (!first_missing) first_missing = Missing{i, proves};
      continue;
    }
    report.first_divergence = divergence_of(evidence, i, found, report.plan);
    proven_wrong = proves;
  }
  if (!report.first_divergence && first_missing) {
    report.first_divergence = divergence_of(evidence, first_missing->tap, TapVerdict::missing, report.plan);
    proven_wrong = first_missing->proves;
  }
  report.problems = doubts.problems;
  report.verdict = proven_wrong                                          ? Verdict::mismatch
                   : report.first_divergence || !report.problems.empty() ? Verdict::inconclusive
                                                                         : Verdict::pass;
}

void note_stall(Stall stall, VerifyReport& report) {
  if (report.verdict != Verdict::mismatch) report.first_divergence.reset();
  report.verdict = Verdict::deadlock;
  report.problems.clear();
  if (report.first_divergence) report.notes.push_back(which_came_first(*report.first_divergence, stall));
  report.stall = std::move(stall);
}

}  // namespace shardproof
