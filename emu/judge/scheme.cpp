#include "emu/judge/scheme.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives/make_executor.h"
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
  const std::unique_ptr<Executor> executor = make_executor(options.threads, options.schedule);
  report.threads = executor->threads();

  TapCollector collector(expected, cluster.mesh(), {.ordered_ids = true, .bound = options.bound});
  try {
    cluster.run(*executor, program, {.taps = &collector});
  } catch (const CollectiveError& error) {
    report.verdict = Verdict::deadlock;
    report.stall = stall_of(error);
    return report;
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
  return report;
}

}  // namespace shardproof
