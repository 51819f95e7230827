#include "emu/judge/scheme.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "collectives/make_executor.h"
#include "collectives/thread_ranks.h"
#include "emu/diagnose/scheme_cause.h"
#include "emu/judge/collector.h"
#include "emu/judge/digits.h"
#include "emu/judge/judge.h"

namespace shardproof {
namespace {

Parallel with_edp(Parallel parallel) {
  std::int64_t world = 1;
  for (const auto& [name, degree] : {std::pair{"tp", parallel.tp},
                                     {"cp", parallel.cp},
                                     {"dp", parallel.dp},
                                     {"pp", parallel.pp},
                                     {"ep", parallel.ep},
                                     {"etp", parallel.etp}}) {
    if (degree < 1) throw std::invalid_argument(fmt::format("{} is {}; at least 1 is needed", name, degree));
    const bool attention = name[0] != 'e';
    if (attention && degree > kMaxSchemeRanks / world) {
      throw std::invalid_argument(fmt::format("tp {} * cp {} * dp {} * pp {} is more than {} ranks", parallel.tp,
                                              parallel.cp, parallel.dp, parallel.pp, kMaxSchemeRanks));
    }
    if (attention) world *= degree;
  }
  const std::int64_t stage = world / parallel.pp;
  const std::int64_t experts = std::int64_t{parallel.ep} * parallel.etp;
  if (stage % experts != 0) {
    throw std::invalid_argument(
        fmt::format("tp*cp*dp = {} ranks a stage do not divide by ep*etp = {}", stage, experts));
  }
  parallel.edp = static_cast<int>(stage / experts);
  return parallel;
}

void check(const SchemeOptions& options) {
  if (!(options.bound >= 0) || !std::isfinite(options.bound)) {
    throw std::invalid_argument(fmt::format("a bound of {} is no bound", options.bound));
  }
  if (options.bound >= 1) {
    throw std::invalid_argument(
        fmt::format("a bound of {} lets zeros pass: they are off by the row's scale; below 1 is "
                    "needed",
                    options.bound));
  }
  if (options.schedules < 0) throw std::invalid_argument(fmt::format("{} schedules", options.schedules));
  if (options.threads < 0) throw std::invalid_argument(fmt::format("{} threads", options.threads));
}

/// Ranks that tapped nothing of a tensor that others tapped.
void note_silent_ranks(const ExpectedTaps& expected, const std::vector<TapOutcome>& outcomes, int world,
                       VerifyReport& report) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    std::vector<int> silent;
    for (int rank = 0; rank < world; ++rank) {
      if (!outcomes[i].holders.contains(rank)) silent.push_back(rank);
    }
    if (silent.empty() || std::ssize(silent) == world) continue;
    const std::size_t shown = std::min<std::size_t>(silent.size(), 16);
    report.notes.push_back(
        fmt::format("{}: tapped by {} of {} ranks; not by {}{}", expected.all()[i].name, outcomes[i].holders.size(),
                    world, fmt::join(silent.begin(), silent.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
                    shown < silent.size() ? ", ..." : ""));
  }
}

std::vector<TapPart> tap_parts(const std::vector<KeptPart>& kept) {
  std::vector<TapPart> parts;
  for (const KeptPart& part : kept) {
    parts.push_back({.tap = {}, .rank = part.rank, .placement = part.placed(), .values = *part.values});
  }
  return parts;
}

Cause cause_of(const ExpectedTap& expected, const TapOutcome& outcome, const Mesh& mesh, double bound) {
  std::vector<std::vector<int>> groups;
  for (const KeptPart& part : outcome.partial_sums) groups.push_back(part.group);
  const std::vector<TapPart> whole = tap_parts(outcome.parts), sums = tap_parts(outcome.partial_sums);
  return scheme_cause(expected, {.whole = whole, .partial_sums = sums, .groups = groups}, mesh, bound);
}

struct SchemeRun {
  VerifyReport report;
  std::vector<TapOutcome> outcomes;
};

/// What a rank's program threw, with the schedule that it threw under.
[[noreturn]] void rethrow_with_seed(const RankError& error, std::uint64_t seed) {
  try {
    error.rethrow_nested();
  } catch (const std::exception& original) {
    throw RankError(error.rank(), fmt::format("{} (under the schedule of seed {})", original.what(), seed),
                    error.graph());
  }
}

SchemeRun run_once(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                   const SchemeOptions& options) {
  VerifyReport report{.schedule = options.schedule};
  report.plan.parallel = parallel;
  Cluster cluster(parallel);
  const std::unique_ptr<Executor> executor =
      options.thread_ranks != nullptr ? options.thread_ranks->make_executor(options.threads, options.schedule)
                                      : make_executor(options.threads, options.schedule);
  report.threads = executor->threads();

  TapCollector collector(expected, cluster.mesh(),
                         {.ordered_ids = true, .bound = options.bound, .keep_parts = true, .any_type = true});
  std::optional<Stall> stall;
  try {
    cluster.run(*executor, program, {.taps = &collector});
  } catch (const CollectiveError& error) {
    stall = stall_of(error);
  } catch (const RankError& error) {
    if (options.schedule) rethrow_with_seed(error, *options.schedule);
    throw;
  }
  std::vector<TapOutcome> outcomes = collector.finish();
  const std::vector<std::string> unexpected = collector.unexpected();
  judge({.expected = expected,
         .sums = {},
         .outcomes = outcomes,
         .problems = {},
         .unexpected = unexpected,
         .remedy = "; choose other data",
         .stalled = stall.has_value()},
        report);
  if (report.verdict == Verdict::mismatch && report.first_divergence->verdict == TapVerdict::mismatch) {
    const auto index = static_cast<std::size_t>(expected.find(report.first_divergence->tap));
    const TapOutcome& outcome = outcomes[index];
    if (outcome.problem.empty() || outcome.missing()) {
      report.first_divergence->cause = cause_of(expected.all()[index], outcome, cluster.mesh(), options.bound);
    }
  }
  if (!stall) note_silent_ranks(expected, outcomes, cluster.size(), report);
  if (stall) note_stall(std::move(*stall), report);
  return {std::move(report), std::move(outcomes)};
}

bool same_place(const KeptPart& a, const KeptPart& b) {
  return a.rank == b.rank && a.placement.row_part == b.placement.row_part &&
         a.placement.col_part == b.placement.col_part && a.row_list == b.row_list &&
         a.values->size() == b.values->size();
}

/// The first element that two runs have other bits of; none when they are the same run of that tap.
std::optional<Divergence> first_difference(const ExpectedTap& tap, const TapOutcome& first, const TapOutcome& other) {
  Divergence divergence{.tap = tap.name, .ranks = {}, .message = {}};
  const std::size_t common = std::min(first.parts.size(), other.parts.size());
  for (std::size_t i = 0; i < common; ++i) {
    const KeptPart &one = first.parts[i], &two = other.parts[i];
    divergence.ranks = {two.rank};
    if (!same_place(one, two)) {
      divergence.message = fmt::format("rank {} hands in another block", two.rank);
      return divergence;
    }
    const std::vector<double>&ones = *one.values, &twos = *two.values;
    for (std::size_t k = 0; k < ones.size(); ++k) {
      if (std::bit_cast<std::uint64_t>(ones[k]) == std::bit_cast<std::uint64_t>(twos[k])) continue;
      const std::int64_t width = one.placement.col_part.count, at = static_cast<std::int64_t>(k);
      divergence.row = one.placed().row(at / width);
      divergence.col = one.placement.col_part.begin + at % width;
      divergence.expected = ones[k];
      divergence.got = twos[k];
      divergence.error = std::abs(twos[k] - ones[k]);
      const auto [was, is] = told_apart(ones[k], twos[k]);
      divergence.message = fmt::format("rank {} has {} at row {}, column {}, and had {}", two.rank, is, divergence.row,
                                       divergence.col, was);
      return divergence;
    }
  }
  if (first.parts.size() == other.parts.size()) return std::nullopt;
  divergence.ranks.clear();
  divergence.message = fmt::format("{} parts are handed in, and were {}", other.parts.size(), first.parts.size());
  return divergence;
}

std::string outcome_text(const VerifyReport& report) {
  return report.stall ? to_string(report.stall->kind) : to_string(report.verdict);
}

/// Whether the run of a seed differs from the first one, which then says so.
bool note_difference(const ExpectedTaps& expected, SchemeRun& first, SchemeRun& other, std::uint64_t seed) {
  std::optional<Divergence> difference;
  std::size_t tap = 0;
  for (; tap < expected.all().size() && !difference; ++tap) {
    difference = first_difference(expected.all()[tap], first.outcomes[tap], other.outcomes[tap]);
  }
  const std::string was = outcome_text(first.report), is = outcome_text(other.report);
  if (was == is && !difference) return false;
  std::string text = fmt::format("what comes out depends on the schedule: from seed {} on, ", seed);
  text += was != is ? fmt::format("it is {}, and was {}", is, was)
                    : fmt::format("{} differs: {}", difference->tap, difference->message);
  // The run that goes wrong says more than one that happens to go right.
  if (first.report.verdict == Verdict::pass && was != is) first.report = std::move(other.report);
  VerifyReport& report = first.report;
  if (report.verdict == Verdict::pass) {
    report.verdict = Verdict::mismatch;
    report.taps[tap - 1].verdict = TapVerdict::mismatch;
    difference->message = fmt::format("under the schedule of seed {}, {}", seed, difference->message);
    difference->cause = Cause{"schedule_dependent", "within the bound under both schedules, with other bits"};
    report.first_divergence = std::move(difference);
  }
  report.problems.push_back({"schedule", std::move(text)});
  report.schedule_dependent = seed;
  return true;
}

}  // namespace

VerifyReport verify_scheme(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                           const SchemeOptions& options) {
  check(options);
  const Parallel mesh = with_edp(parallel);
  SchemeRun first = run_once(mesh, program, expected, options);
  // A rank that was not waited for may still run.
  const auto gave_up = [](const VerifyReport& report) {
    return report.stall && report.stall->kind == StallKind::no_progress;
  };
  for (int i = 1; i <= options.schedules && !gave_up(first.report); ++i) {
    SchemeOptions scheduled = options;
    scheduled.schedule = static_cast<std::uint64_t>(i);
    SchemeRun other = run_once(mesh, program, expected, scheduled);
    const bool differs = note_difference(expected, first, other, *scheduled.schedule);
    first.report.schedules = i;
    if (differs) break;
  }
  return std::move(first.report);
}

}  // namespace shardproof
