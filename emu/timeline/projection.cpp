#include "emu/timeline/projection.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace shardproof {
namespace {

/// What the classes' items of the first pass add up to, over ranks.
class Fold {
 public:
  Fold(const Replay& replay, int world) : replay_(replay), world_(world) {}

  void into(PassTiming& timing) {
    for (std::size_t at = 0; at < replay_.items.size(); ++at) add_class(static_cast<int>(at));
    const double span = replay_.pass_ends.front(), all = span * world_;
    timing.seconds = span;
    timing.period = replay_.pass_ends.size() > 1 ? replay_.pass_ends[1] - replay_.pass_ends[0] : span;
    timing.flops = flops_;
    timing.bytes = bytes_;
    if (all > 0) {
      timing.overhead = replay_.overhead * world_ / all;
      timing.computing = computing_ / all;
      timing.communicating = moving_ / all;
      timing.waiting = waiting_ / all;
      timing.bubble = bubble_ / all;
      timing.hidden = hidden_ / all;
    }
    for (auto& [key, total] : communication_) {
      total.axis = key.first;
      total.operation = key.second;
      for (double* mean : {&total.calls, &total.wire_bytes, &total.moving, &total.hidden, &total.waiting})
        *mean /= world_;
      timing.communication.push_back(total);
    }
    std::ranges::sort(timing.communication, [](const auto& a, const auto& b) { return a.moving > b.moving; });
    timing.critical = critical_path();
  }

 private:
  void add_class(int at) {
    const double ranks = replay_.ranks_of_class[static_cast<std::size_t>(at)];
    const std::vector<ClockStep>& program = replay_.program(at);
    double end = replay_.overhead;
    for (const ClockItem& item : replay_.items[static_cast<std::size_t>(at)]) {
      if (item.pass > 0) break;
      const ClockStep& step = program[static_cast<std::size_t>(item.step)];
      end = item.end;
      if (step.kind == ClockStep::Kind::compute) {
        computing_ += ranks * (item.end - item.begin);
        flops_ += ranks * step.work.flops;
        bytes_ += ranks * step.work.bytes;
      } else if (step.kind == ClockStep::Kind::call) {
        add_call(step, item, ranks);
      }
    }
    bubble_ += ranks * (replay_.pass_ends.front() - end);
  }

  void add_call(const ClockStep& step, const ClockItem& item, double ranks) {
    CommunicationTime& total = communication_[{step.axis, step.operation}];
    if (step.phase != CallPhase::awaited) total.calls += ranks;
    total.hidden += ranks * item.hidden;
    hidden_ += ranks * item.hidden;
    total.wire_bytes += ranks * step.wire;
    total.moving += ranks * (item.end - item.begin);
    total.waiting += ranks * (item.begin - item.ready);
    moving_ += ranks * (item.end - item.begin);
    (is_point_to_point(step.operation) ? bubble_ : waiting_) += ranks * (item.begin - item.ready);
  }

  /// From the end of the first pass back, each time to what was waited for.
  std::vector<OpTime> critical_path() const {
    int at = -1;
    std::int64_t item = -1;
    double latest = -1;
    for (std::size_t c = 0; c < replay_.items.size(); ++c) {
      const std::vector<ClockItem>& items = replay_.items[c];
      const auto beyond = std::ranges::find_if(items, [](const ClockItem& one) { return one.pass > 0; });
      if (beyond == items.begin() || std::prev(beyond)->end <= latest) continue;
      latest = std::prev(beyond)->end;
      at = static_cast<int>(c);
      item = beyond - items.begin() - 1;
    }
    std::map<Op, OpTime> of_op;
    while (item >= 0) {
      const ClockItem& one = replay_.items[static_cast<std::size_t>(at)][static_cast<std::size_t>(item)];
      const ClockStep& step = replay_.program(at)[static_cast<std::size_t>(one.step)];
      OpTime& total = of_op[step.op];
      total.op = step.op;
      total.seconds += one.end - one.begin;
      total.count += step.records;
      if (one.last >= 0) {
        at = one.last;
        item = one.item_of;
      }
      --item;
    }
    std::vector<OpTime> path;
    for (const auto& [op, total] : of_op) {
      if (total.seconds > 0) path.push_back(total);
    }
    std::ranges::stable_sort(path, [](const OpTime& a, const OpTime& b) { return a.seconds > b.seconds; });
    return path;
  }

  const Replay& replay_;
  double world_;
  double flops_ = 0, bytes_ = 0;
  double computing_ = 0, moving_ = 0, hidden_ = 0, waiting_ = 0, bubble_ = 0;
  std::map<std::pair<Axis, Operation>, CommunicationTime> communication_;
};

/// Of each microbatch of a class's first pass, when its logits are there.
std::vector<std::pair<std::int32_t, double>> ends_of_logits(const Replay& replay, int of_class) {
  std::vector<std::pair<std::int32_t, double>> ends;
  for (const ClockItem& item : replay.items[static_cast<std::size_t>(of_class)]) {
    if (item.pass > 0) break;
    const ClockStep& step = replay.program(of_class)[static_cast<std::size_t>(item.step)];
    if (step.op == Op::logits && step.kind == ClockStep::Kind::compute) ends.emplace_back(step.microbatch, item.end);
  }
  return ends;
}

/// When each sequence's logits are there: on every rank of its replica's last stage.
std::vector<double> sequence_seconds(const Plan& plan, const Mesh& mesh, const Replay& replay) {
  const TokenMap tokens(plan.parallel, plan.workload.whole());
  std::vector<double> seconds(plan.workload.lengths.size(), 0);
  std::map<std::pair<int, std::int32_t>, double> done;
  std::map<int, std::vector<std::pair<std::int32_t, double>>> ends_of_class;  // microbatch, when
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const Coordinates at = mesh.coordinates(rank);
    if (at.pp != mesh.degree(Axis::pp) - 1) continue;
    const int of_class = replay.class_of_rank[static_cast<std::size_t>(rank)];
    const auto [ends, is_new] = ends_of_class.try_emplace(of_class);
    if (is_new) ends->second = ends_of_logits(replay, of_class);
    for (const auto& [microbatch, seconds_of] : ends->second) {
      double& end = done[{at.dp, microbatch}];
      end = std::max(end, seconds_of);
    }
  }
  for (const auto& [of, end] : done) {
    for (const Chunk& chunk : tokens.chunks(of.first, of.second)) {
      seconds[static_cast<std::size_t>(chunk.sequence)] = end;
    }
  }
  return seconds;
}

}  // namespace

Interval time_interval(double seconds, const Residuals& residuals) {
  return {seconds, seconds * (1 + residuals.low), seconds * (1 + residuals.high)};
}

Interval rate_interval(double amount, const Interval& time) {
  return {amount / time.value, amount / time.high, amount / time.low};
}

PassTiming time_pass(const Plan& plan, const DryTraces& traces, DryPass pass, const HardwareModel& hardware,
                     const ProjectionOptions& options) {
  const Mesh mesh(plan.parallel);
  const auto per_node = static_cast<int>(plan.hardware ? plan.hardware->gpus_per_node : Hardware{}.gpus_per_node);
  PassTiming timing;
  timing.pass = pass;
  timing.tokens =
      static_cast<double>(pass == DryPass::prefill ? plan.workload.prompts().tokens() : plan.workload.batch());
  timing.replay = replay(traces, mesh,
                         {.hardware = hardware,
                          .rules = {plan.model, options.format, pass, options.weights,
                                    cache_element_bytes(plan.workload, ops::bytes_per_element(options.format))},
                          .gpus_per_node = per_node,
                          .passes = pass == DryPass::decode && plan.parallel.pp > 1 ? 2 : 1});
  Fold(timing.replay, mesh.world()).into(timing);
  timing.sequence_seconds = sequence_seconds(plan, mesh, timing.replay);
  const Rate rate = options.weights == WeightFormat::fp8 ? Rate::fp8 : rate_of(options.format);
  const double all = timing.seconds * mesh.world();
  if (all > 0) {
    timing.mfu = timing.flops / (all * hardware.peak(rate));
    timing.bandwidth_share = timing.bytes / (all * hardware.memory_bytes_per_second);
  }
  return timing;
}

namespace {

Projection without_passes(const Plan& plan, const HardwareChoice& hardware, const ProjectionOptions& options) {
  Projection projection;
  projection.hardware = hardware;
  projection.world = plan.world();
  if (plan.hardware) projection.gpus_per_node = static_cast<int>(plan.hardware->gpus_per_node);
  projection.options = options;
  return projection;
}

}  // namespace

Projection project(const Plan& plan, const HardwareChoice& hardware, const ProjectionOptions& options) {
  Projection projection = without_passes(plan, hardware, options);
  const StatedRouting routing = StatedRouting::of(plan);
  for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
    const DryTraces traces = dry_run(plan, options.format, pass, routing);
    (pass == DryPass::prefill ? projection.prefill : projection.decode) =
        time_pass(plan, traces, pass, hardware.model, options);
  }
  return projection;
}

std::vector<Projection> project(const Plan& plan, std::span<const HardwareChoice> hardware,
                                const ProjectionOptions& options) {
  std::vector<Projection> all;
  for (const HardwareChoice& choice : hardware) all.push_back(without_passes(plan, choice, options));
  const StatedRouting routing = StatedRouting::of(plan);
  for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
    const DryTraces traces = dry_run(plan, options.format, pass, routing);
    for (Projection& one : all) {
      PassTiming& timing = pass == DryPass::prefill ? one.prefill : one.decode;
      timing = time_pass(plan, traces, pass, one.hardware.model, options);
      timing.replay = {};
    }
  }
  return all;
}

Interval Projection::prefill_seconds() const {
  return time_interval(prefill.seconds, hardware.model.prefill);
}

Interval Projection::seconds_to_first_token(double share_of_requests) const {
  std::vector<double> sorted = prefill.sequence_seconds;
  std::ranges::sort(sorted);
  const auto count = static_cast<double>(sorted.size());
  const auto at = static_cast<std::size_t>(std::max(0.0, std::ceil(share_of_requests * count) - 1));
  const double last_of_them = sorted[std::min(at, sorted.size() - 1)];
  return time_interval(last_of_them + hardware.model.request_overhead_seconds, hardware.model.prefill);
}

Interval Projection::seconds_per_output_token() const {
  return time_interval(decode.period, hardware.model.decode);
}

Interval Projection::prompt_tokens_per_second() const {
  return rate_interval(prefill.tokens, prefill_seconds());
}

Interval Projection::output_tokens_per_second() const {
  return rate_interval(decode.tokens, seconds_per_output_token());
}

}  // namespace shardproof
