#include "emu/judge/amplification.h"

#include <algorithm>
#include <future>
#include <utility>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/judge/session.h"

namespace shardproof {
namespace {

struct Pair {
  RunResult unsharded;
  RunResult sharded;
};

Pair run_both(Session& session, const RoutingReplay* replay) {
  ProgramRun unsharded = session.unsharded(), sharded = session.sharded();
  unsharded.replay = sharded.replay = replay;
  std::future<RunResult> beside_it = std::async(beside(session.options()), [&] { return session.run(unsharded); });
  RunResult result = session.run(sharded);
  return {beside_it.get(), std::move(result)};
}

bool any_choice_differs(const ExpectedTaps& expected, const std::vector<TapOutcome>& outcomes) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (expected.all()[i].traits.ids && outcomes[i].worst.error > 0) return true;
  }
  return false;
}

/// Counts the choices of the sharded run that differ, and how far apart the reference's logits of the experts are.
void count_choices(const ExpectedTaps& expected, const std::vector<TapOutcome>& sharded, AmplificationReport& report) {
  for (std::size_t i = 0; i < sharded.size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (!tap.traits.ids || sharded[i].ids.empty()) continue;
    const auto at = static_cast<std::size_t>(expected.find({.layer = tap.id->layer, .kind = TapKind::router_logits}));
    const ExpectedTap& logits = expected.all()[at];
    report.choices += tap.rows;
    for (std::int64_t row = 0; row < tap.rows; ++row) {
      const std::int32_t* got = sharded[i].ids.data() + row * tap.cols;
      std::vector<std::int64_t> wanted, chosen(got, got + tap.cols), dropped, taken;
      for (std::int64_t col = 0; col < tap.cols; ++col) wanted.push_back(static_cast<std::int64_t>(tap.at(row, col)));
      std::ranges::sort(wanted);
      std::ranges::sort(chosen);
      std::ranges::set_difference(wanted, chosen, std::back_inserter(dropped));
      std::ranges::set_difference(chosen, wanted, std::back_inserter(taken));
      if (taken.empty()) continue;
      ++report.differing;
      for (const std::int64_t out : dropped) {
        for (const std::int64_t in : taken) {
          if (in < 0 || in >= logits.cols) continue;
          report.widest_margin = std::max(report.widest_margin, logits.at(row, out) - logits.at(row, in));
        }
      }
    }
  }
}

void compare_errors(const ExpectedTaps& expected, const Pair& runs, AmplificationReport& report) {
  const double unit = ops::unit_roundoff(report.format);
  for (std::size_t i = 0; i < expected.all().size(); ++i) {
    const ExpectedTap& tap = expected.all()[i];
    if (tap.traits.ids) continue;
    AmplifiedTap now{.tap = tap.name,
                     .kind = tap.kind,
                     .unsharded = runs.unsharded.outcomes[i].worst.measure,
                     .sharded = runs.sharded.outcomes[i].worst.measure};
    // An unsharded error of zero happens by luck; one rounding is the least that makes a ratio meaningful.
    if (now.sharded != now.unsharded) now.amplification = now.sharded / std::max(now.unsharded, unit);
    const auto kind = std::ranges::find(report.kinds, now.kind, &AmplifiedTap::kind);
    if (kind == report.kinds.end()) {
      report.kinds.push_back(std::move(now));
    } else if (now.amplification > kind->amplification) {
      *kind = std::move(now);
    }
  }
}

}  // namespace

AmplificationReport measure_amplification(const RunnablePlan& plan, const VerifyOptions& options) {
  AmplificationReport report{.format = options.format, .limit = options.max_amplification};
  const PreparedReference whole = prepare_whole_model(plan.plan(), options.format, options.weights);
  Session session(plan, options, whole);
  Pair runs = run_both(session, nullptr);
  count_choices(whole.expected, runs.sharded.outcomes, report);
  report.replayed = any_choice_differs(whole.expected, runs.unsharded.outcomes) ||
                    any_choice_differs(whole.expected, runs.sharded.outcomes);
  const RoutingReplay choices = choices_of(whole.expected);
  if (report.replayed) runs = run_both(session, &choices);
  for (const RunResult* run : {&runs.unsharded, &runs.sharded}) {
    if (report.error.empty()) report.error = run->stall ? run->stall->text : run->error;
  }
  if (report.error.empty()) compare_errors(whole.expected, runs, report);
  return report;
}

}  // namespace shardproof
