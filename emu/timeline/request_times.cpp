#include "emu/timeline/request_times.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <tuple>
#include <utility>

#include "emu/plan/engine.h"
#include "emu/plan/schedule.h"
#include "emu/run/dry_run.h"

namespace shardproof {
namespace {

using Step = std::vector<std::vector<Chunk>>;  // by replica
/// What is run, without the sequences.
using StepShape = std::vector<std::vector<StepChunk>>;

constexpr std::int64_t kMostSteps = std::int64_t{1} << 20;

/// The chunks of a step as far as they decide how long it is. One token with a past is taken for one after a prompt.
StepShape shape_of_step(const Step& step, std::span<const Request> requests) {
  StepShape shape;
  for (const std::vector<Chunk>& chunks : step) {
    std::vector<StepChunk>& of_replica = shape.emplace_back();
    std::int64_t tokens = 0, past = 0;
    for (const Chunk& chunk : chunks) {
      if (chunk.count > 1 || chunk.begin == 0) {
        const std::int64_t prompt = requests[static_cast<std::size_t>(chunk.sequence)].prompt;
        of_replica.push_back({.begin = chunk.begin,
                              .count = chunk.count,
                              .of_prompt = std::clamp<std::int64_t>(prompt - chunk.begin, 0, chunk.count)});
      } else {
        ++tokens;
        past += chunk.begin;
      }
    }
    if (tokens == 0) continue;
    const std::int64_t grains = (past / tokens + kCacheGrain / 2) / kCacheGrain;
    const StepChunk one{.begin = std::max<std::int64_t>(1, grains * kCacheGrain), .count = 1};
    of_replica.insert(of_replica.begin(), static_cast<std::size_t>(tokens), one);
  }
  return shape;
}

class StepTimer {
 public:
  StepTimer(const Plan& plan, const HardwareModel& hardware, const ProjectionOptions& options)
      : plan_(plan), hardware_(hardware), options_(options), mesh_(plan.parallel), routing_(StatedRouting::of(plan)) {}

  double seconds(const Step& step) {
    const StepShape shape = shape_of_step(step, plan_.workload.serving->requests);
    const auto [known, is_new] = known_.try_emplace(shape, 0.0);
    if (is_new) known->second = replayed(shape);
    return known->second;
  }
  std::int64_t shapes() const { return std::ssize(known_); }

 private:
  double replayed(const StepShape& shape) const {
    const bool tokens_alone = std::ranges::all_of(shape, [](const std::vector<StepChunk>& chunks) {
      return std::ranges::all_of(chunks, [](const StepChunk& chunk) { return chunk.count == 1 && chunk.begin > 0; });
    });
    const DryPass pass = tokens_alone ? DryPass::decode : DryPass::prefill;
    const DryTraces traces = dry_run_step(plan_, options_.format, shape, routing_);
    const Hardware stated = plan_.hardware.value_or(Hardware{});
    const Replay replayed =
        replay(traces, mesh_,
               {.hardware = hardware_,
                .rules = {plan_.model, options_.format, pass, options_.weights,
                          cache_element_bytes(plan_.workload, ops::bytes_per_element(options_.format))},
                .gpus_per_node = static_cast<int>(stated.gpus_per_node),
                .passes = tokens_alone && plan_.parallel.pp > 1 ? 2 : 1});
    const std::vector<double>& ends = replayed.pass_ends;
    return ends.back() - (ends.size() > 1 ? ends[ends.size() - 2] : 0);
  }

  const Plan& plan_;
  const HardwareModel& hardware_;
  const ProjectionOptions& options_;
  Mesh mesh_;
  StatedRouting routing_;
  std::map<StepShape, double> known_;
};

class Clockwork {
 public:
  Clockwork(const Plan& plan, StepTimer& timer) : serving_(*plan.workload.serving), timer_(timer) {
    for (const Request& request : serving_.requests) {
      times_.requests.push_back({.arrival = request.arrival > 0 ? -1 : request.arrival_s,
                                 .tokens_after_first = static_cast<double>(request.tokens() - request.prompt)});
      times_.output_tokens += static_cast<double>(request.output);
    }
  }

  RequestTimes of_engines(const Parallel& parallel, const Workload& workload) {
    std::vector<Engine> engines;
    for (int dp = 0; dp < parallel.dp; ++dp)
      engines.emplace_back(workload, parallel.dcp, sequences_of_replica(parallel, workload.batch(), dp));
    while (!std::ranges::all_of(engines, &Engine::done)) {
      if (!std::ranges::any_of(engines, [&](const Engine& engine) { return engine.has_work(now_); })) wait(engines);
      arrive();
      Step step;
      for (Engine& engine : engines) step.push_back(engine.step(now_));
      run(step);
    }
    return std::move(times_);
  }

  RequestTimes of_stated(const Parallel& parallel, const Workload& workload) {
    const std::vector<ReplicaSchedule> schedule = make_schedule(parallel, workload);
    for (std::size_t at = 0; at < schedule.front().size(); ++at) {
      arrive();
      Step step;
      for (const ReplicaSchedule& replica : schedule) step.push_back(replica[at]);
      run(step);
    }
    return std::move(times_);
  }

 private:
  /// Until the next request of any of the engines has come.
  void wait(const std::vector<Engine>& engines) {
    std::optional<Moment> next;
    for (const Engine& engine : engines) {
      if (engine.done()) continue;
      const Moment come = engine.next_arrival(now_);
      if (!next || std::pair(come.step, come.seconds) < std::pair(next->step, next->seconds)) next = come;
    }
    now_ = next.value();
  }

  /// Those that are told in steps come when the step begins.
  void arrive() {
    for (std::size_t i = 0; i < times_.requests.size(); ++i) {
      double& arrival = times_.requests[i].arrival;
      if (arrival < 0 && serving_.requests[i].arrival <= now_.step) arrival = now_.seconds;
    }
  }

  void run(const Step& step) {
    if (++times_.steps > kMostSteps) {
      throw TooManyRecords(fmt::format("more than {} steps; fewer or shorter requests do", kMostSteps));
    }
    const double seconds = timer_.seconds(step);
    now_.seconds += seconds;
    ++now_.step;
    times_.busy += seconds;
    times_.seconds = now_.seconds;
    for (const std::vector<Chunk>& chunks : step) {
      for (const Chunk& chunk : chunks) {
        const Request& request = serving_.requests[static_cast<std::size_t>(chunk.sequence)];
        RequestTime& time = times_.requests[static_cast<std::size_t>(chunk.sequence)];
        if (chunk.end() == request.prompt) time.first_token = now_.seconds;
        if (chunk.end() == request.tokens()) time.last_token = now_.seconds;
      }
    }
  }

  const Serving& serving_;
  StepTimer& timer_;
  Moment now_;
  RequestTimes times_;
};

/// Of the sorted values, the one that so large a share of them does not exceed.
double at_share(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const auto place = static_cast<std::size_t>(std::max(0.0, std::ceil(share * static_cast<double>(values.size())) - 1));
  return values[std::min(place, values.size() - 1)];
}

}  // namespace

Interval RequestTimes::first_token(double share) const {
  std::vector<double> waits;
  for (const RequestTime& request : requests) waits.push_back(request.first_token - request.arrival);
  return time_interval(at_share(std::move(waits), share) + hardware.model.request_overhead_seconds,
                       hardware.model.prefill);
}

Interval RequestTimes::output_token(double share) const {
  std::vector<double> times;
  for (const RequestTime& request : requests) {
    if (request.tokens_after_first > 0)
      times.push_back((request.last_token - request.first_token) / request.tokens_after_first);
  }
  return time_interval(at_share(std::move(times), share), hardware.model.decode);
}

Interval RequestTimes::tokens_per_second() const {
  return rate_interval(output_tokens, time_interval(seconds, hardware.model.decode));
}

RequestTimes time_requests(const Plan& plan, const HardwareChoice& hardware, const ProjectionOptions& options) {
  StepTimer timer(plan, hardware.model, options);
  Clockwork clockwork(plan, timer);
  RequestTimes times = plan.workload.serving->steps.empty() ? clockwork.of_engines(plan.parallel, plan.workload)
                                                            : clockwork.of_stated(plan.parallel, plan.workload);
  times.shapes = timer.shapes();
  times.hardware = hardware;
  return times;
}

}  // namespace shardproof
