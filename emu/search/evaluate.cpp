#include "emu/search/internal/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emu/paper/quantities.h"
#include "emu/plan/layout.h"
#include "emu/run/dry_run.h"

namespace shardproof::searching {
namespace {

void add(CauseSeconds& sum, const CauseSeconds& more, double times) {
  for (const auto& [cause, seconds] : more) sum[cause] += times * seconds;
}

}  // namespace

double weight_bytes(const Plan& plan) {
  const Mesh mesh(plan.parallel);
  double most = 0;
  // The first rank of a stage holds as much as any of it: what does not divide goes to the first.
  for (Coordinates at; at.pp < plan.parallel.pp; ++at.pp) {
    const Layout layout = make_layout(plan.model, mesh, mesh.rank_at(at));
    most = std::max(most, held_weight_bytes(layout, plan.model, dtype_bytes(plan.model)).total());
  }
  return most;
}

Evaluation::Evaluation(const Plan& plan, const StatedRouting& routing, const SearchOptions& options)
    : plan_(plan),
      options_(options),
      routing_(routing),
      prefill_(dry_run(plan, options.projection.format, DryPass::prefill, routing_, DryLists::folded)) {
  const std::vector<RankFigures> ranks = prefill_figures(plan, prefill_);
  const auto most = std::ranges::max_element(ranks, {}, [&](const RankFigures& r) { return inference_bytes(plan, r); });
  memory_bytes_ = inference_bytes(plan, *most);
  memory_arithmetic_ = fmt::format("rank {}: {}", most->rank, inference_text(plan, *most));
}

TimedLayout Evaluation::timed() const {
  Projection projection;
  projection.hardware = options_.hardware;
  projection.world = plan_.world();
  projection.options = options_.projection;
  CauseSeconds causes_of[2];
  for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
    const bool first = pass == DryPass::prefill;
    const DryTraces decode =
        first ? DryTraces{} : dry_run(plan_, options_.projection.format, pass, routing_, DryLists::folded);
    PassTiming timing = time_pass(plan_, first ? prefill_ : decode, pass, options_.hardware.model, options_.projection);
    const std::vector<double>& ends = timing.replay.pass_ends;
    const double begin = ends.size() > 1 ? ends[ends.size() - 2] : 0;
    causes_of[first ? 0 : 1] = seconds_by_cause(timing.replay, begin, ends.back());
    timing.replay = {};
    (first ? projection.prefill : projection.decode) = std::move(timing);
  }
  auto& [prefill, decode] = causes_of;
  TimedLayout found;
  found.choice = choice_of(plan_);
  found.memory_bytes = memory_bytes_;
  found.first_token = projection.seconds_to_first_token();
  found.output_token = projection.seconds_per_output_token();
  const std::optional<Serving>& serving = plan_.workload.serving;
  double output = 0, steps = 0;
  for (const Request& request : serving ? serving->requests : std::vector<Request>{}) {
    output += static_cast<double>(request.output);
    steps = std::max(steps, static_cast<double>(request.output) - 1);
  }
  const double tokens = output > 0 ? output : projection.prefill.tokens;
  const auto batch_seconds = [&](const Interval& first, const Interval& next) -> Interval {
    return {first.value + steps * next.value, first.low + steps * next.low, first.high + steps * next.high};
  };
  const Interval seconds = batch_seconds(projection.prefill_seconds(), found.output_token);
  found.tokens_per_second = rate_interval(tokens, seconds);
  switch (options_.objective) {
    case Objective::throughput:
      found.cost = seconds.value / tokens;
      add(found.causes, prefill, 1 / tokens);
      add(found.causes, decode, steps / tokens);
      break;
    case Objective::output_token:
      found.cost = found.output_token.value;
      found.causes = std::move(decode);
      break;
    case Objective::first_token:
      found.cost = found.first_token.value;
      found.causes = std::move(prefill);
      break;
  }
  const auto within = [](const Interval& seconds_of, double limit) { return limit == 0 || seconds_of.value <= limit; };
  found.meets_limits = within(found.first_token, options_.limits.first_token) &&
                       within(found.output_token, options_.limits.output_token);
  return found;
}

std::string loses_by(const TimedLayout& loser, const TimedLayout& best, const SearchOptions& options) {
  if (best.meets_limits && !loser.meets_limits) {
    const double first = options.limits.first_token, output = options.limits.output_token;
    const bool late = first > 0 && loser.first_token.value > first;
    const double value = late ? loser.first_token.value : loser.output_token.value, limit = late ? first : output;
    return fmt::format("{} {} is {} over the limit of {}", late ? "ttft" : "tpot", duration(value),
                       duration(value - limit), duration(limit));
  }
  const double behind = loser.cost - best.cost;
  if (behind <= 0) {
    const double more = loser.memory_bytes - best.memory_bytes;
    return more > 0 ? fmt::format("as fast, and {} more memory", readable(more, Dimension::bytes))
                    : "as fast; later in the order of axes";
  }
  CauseSeconds beyond = loser.causes;
  add(beyond, best.causes, -1);
  const auto most = std::ranges::max_element(beyond, {}, [](const auto& one) { return one.second; });
  const auto spent = [&](const TimedLayout& on) {
    const auto found = on.causes.find(most->first);
    return found == on.causes.end() ? 0.0 : found->second;
  };
  return fmt::format("{:.1f} % slower: {} {} against {}{}", 100 * behind / best.cost, describe(most->first),
                     duration(spent(loser)), duration(spent(best)),
                     options.objective == Objective::throughput ? " a token" : "");
}

}  // namespace shardproof::searching
