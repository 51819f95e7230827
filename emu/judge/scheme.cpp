#include "emu/judge/scheme.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "collectives/make_executor.h"
#include "emu/diagnose/scheme_cause.h"
#include "emu/judge/collector.h"
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

Cause cause_of(const ExpectedTaps& expected, const Divergence& divergence, const std::vector<TapOutcome>& outcomes,
               const Mesh& mesh, double bound) {
  const auto index = static_cast<std::size_t>(expected.find(divergence.tap));
  std::vector<TapPart> parts;
  for (const KeptPart& part : outcomes[index].parts) {
    if (!part.row_list.empty()) continue;
    parts.push_back({.tap = {}, .rank = part.rank, .placement = part.placement, .values = part.values});
  }
  return scheme_cause(expected.all()[index], parts, mesh, bound);
}

VerifyReport run_once(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                      const SchemeOptions& options) {
  VerifyReport report{.schedule = options.schedule};
  report.plan.parallel = parallel;
  Cluster cluster(parallel);
  const std::unique_ptr<Executor> executor = make_executor(options.threads, options.schedule);
  report.threads = executor->threads();

  TapCollector collector(expected, cluster.mesh(),
                         {.ordered_ids = true, .bound = options.bound, .keep_parts = true, .any_type = true});
  std::optional<Stall> stall;
  try {
    cluster.run(*executor, program, {.taps = &collector});
  } catch (const CollectiveError& error) {
    stall = stall_of(error);
  }
  const std::vector<TapOutcome> outcomes = collector.finish();
  const std::vector<std::string> unexpected = collector.unexpected();
  judge({.expected = expected,
         .sums = {},
         .outcomes = outcomes,
         .problems = {},
         .unexpected = unexpected,
         .remedy = "; choose other data"},
        report);
  if (report.verdict == Verdict::mismatch && report.first_divergence->verdict == TapVerdict::mismatch &&
      outcomes[static_cast<std::size_t>(expected.find(report.first_divergence->tap))].problem.empty()) {
    report.first_divergence->cause =
        cause_of(expected, *report.first_divergence, outcomes, cluster.mesh(), options.bound);
  }
  note_silent_ranks(expected, outcomes, cluster.size(), report);
  if (stall) note_stall(std::move(*stall), report);
  return report;
}

/// What of the report differs from the first's; empty when nothing does.
std::string difference(const VerifyReport& first, const VerifyReport& other) {
  if (first.verdict != other.verdict) {
    return fmt::format("the verdict is {}, and was {}", to_string(other.verdict), to_string(first.verdict));
  }
  for (std::size_t i = 0; i < first.taps.size(); ++i) {
    if (first.taps[i].bits != other.taps[i].bits) return fmt::format("{} has other bits", first.taps[i].name);
  }
  return {};
}

}  // namespace

VerifyReport verify_scheme(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                           const SchemeOptions& options) {
  check(options);
  const Parallel mesh = with_edp(parallel);
  VerifyReport report = run_once(mesh, program, expected, options);
  for (int seed = 1; seed <= options.schedules; ++seed) {
    SchemeOptions scheduled = options;
    scheduled.schedule = static_cast<std::uint64_t>(seed);
    const VerifyReport other = run_once(mesh, program, expected, scheduled);
    const std::string what = difference(report, other);
    if (what.empty()) continue;
    // The run that goes wrong says more than one that happens to go right.
    if (report.verdict == Verdict::pass) report = other;
    if (report.verdict == Verdict::pass) report.verdict = Verdict::mismatch;
    report.problems.push_back(
        {"schedule", fmt::format("what comes out depends on the schedule: from seed {} on, {}", seed, what)});
    report.schedule_dependent = static_cast<std::uint64_t>(seed);
    break;
  }
  return report;
}

}  // namespace shardproof
