#include "emu/judge/scheme.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "collectives/default_executor.h"
#include "collectives/seeded_executor.h"
#include "emu/judge/collector.h"
#include "emu/judge/judge.h"

namespace shardproof {
namespace {

Parallel with_edp(Parallel parallel) {
  const int stage = parallel.tp * parallel.cp * parallel.dp;
  const int experts = parallel.ep * parallel.etp;
  if (stage < 1 || parallel.pp < 1 || experts < 1 || stage % experts != 0) {
    throw std::invalid_argument(
        fmt::format("tp*cp*dp = {} ranks a stage do not divide by ep*etp = {}", stage, experts));
  }
  parallel.edp = stage / experts;
  return parallel;
}

}  // namespace

VerifyReport verify_scheme(const Parallel& parallel, const Cluster::Program& program, const ExpectedTaps& expected,
                           const SchemeOptions& options) {
  if (!(options.bound >= 0) || !std::isfinite(options.bound)) {
    throw std::invalid_argument(fmt::format("a bound of {} is no bound", options.bound));
  }
  VerifyReport report{.schedule = options.schedule};
  report.plan.parallel = with_edp(parallel);
  Cluster cluster(report.plan.parallel);
  std::unique_ptr<Executor> executor;
  if (options.schedule) {
    executor = std::make_unique<SeededExecutor>(*options.schedule);
  } else if (options.threads > 0) {
    executor = std::make_unique<DefaultExecutor>(options.threads);
  } else {
    executor = std::make_unique<DefaultExecutor>();
  }
  report.threads = executor->threads();

  TapCollector collector(expected, cluster.mesh(), true);
  try {
    cluster.run(*executor, program, &collector);
  } catch (const CollectiveError& error) {
    report.verdict = Verdict::deadlock;
    report.stall = stall_of(error);
    return report;
  }
  const std::vector<TapOutcome> outcomes = collector.finish();
  report.taps = report_taps(expected, outcomes, outcomes, ops::Format::exact);
  for (TapReport& tap : report.taps) tap.bound = options.bound;
  report.first_divergence = first_divergence(report.taps, outcomes);
  for (const std::string& name : collector.unexpected()) {
    report.problems.push_back({name, "a rank tapped it, but nothing is expected of that name"});
  }
  if (expected.all().empty()) report.problems.push_back({"expected", "no tap is expected: the run proves nothing"});
  for (const ExpectedTap& tap : expected.all()) {
    if (!tap.vacuous.empty()) {
      report.problems.push_back(
          {tap.name, "the expected values are " + tap.vacuous + ": agreement would prove nothing"});
    }
  }
  // A difference from what is not a number proves nothing.
  const auto broken = std::ranges::find(expected.all(), kNotFinite, &ExpectedTap::vacuous) - expected.all().begin();
  const bool proves = report.first_divergence && expected.find(report.first_divergence->tap) < broken;
  report.verdict = proves                                                ? Verdict::mismatch
                   : report.first_divergence || !report.problems.empty() ? Verdict::inconclusive
                                                                         : Verdict::pass;
  return report;
}

}  // namespace shardproof
