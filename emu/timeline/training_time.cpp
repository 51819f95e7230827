#include "emu/timeline/training_time.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "emu/plan/layout.h"
#include "emu/run/dry_run.h"
#include "emu/timeline/clock.h"
#include "emu/timeline/collective_time.h"
#include "emu/timeline/work.h"

namespace shardproof {
namespace {

constexpr double kOptimizerBytes = 30;  // of a parameter
constexpr double kScoreBytes = 13;      // of a pair of a query and a key

bool is_core(Op op) {
  return op == Op::attention_context || op == Op::attention_ring_part;
}

bool has_two_gradients(Op op) {
  const bool head = op == Op::router_logits || op == Op::shared_gate || op == Op::logits;
  return is_projection(op) || is_core(op) || is_mlp(op) || head;
}

/// Of one microbatch on a rank, there and back.
struct StageSeconds {
  double computing = 0;
  double over_tp = 0;
  double over_others = 0;  ///< cp

  double total(bool hides_tp) const {
    return over_others + (hides_tp ? std::max(computing, over_tp) : computing + over_tp);
  }
};

class TrainingClock {
 public:
  TrainingClock(const Plan& plan, const TrainingStep& step, const HardwareModel& hardware,
                const ProjectionOptions& options)
      : plan_(plan), step_(step), hardware_(hardware), options_(options), mesh_(plan.parallel) {
    if (plan.hardware) gpus_per_node_ = static_cast<int>(plan.hardware->gpus_per_node);
  }

  double seconds() const {
    const std::vector<double> stages = stage_seconds();
    const double slowest = *std::ranges::max_element(stages);
    const double others = std::reduce(stages.begin(), stages.end()) - slowest;
    const double microbatches =
        static_cast<double>(step_.batch) / (static_cast<double>(step_.microbatch) * plan_.parallel.dp);
    return microbatches * (slowest + 2 * step_.chunks * message_seconds()) + others / step_.chunks +
           gradient_seconds() + optimizer_seconds() + hardware_.overhead_seconds;
  }

 private:
  /// By stage, of its first rank.
  std::vector<double> stage_seconds() const {
    Plan one = plan_;
    one.workload.lengths.assign(static_cast<std::size_t>(step_.microbatch * plan_.parallel.dp),
                                std::int64_t{plan_.workload.lengths.front()});
    one.workload.microbatches = 1;
    const DryTraces traces = dry_run(one, options_.format, DryPass::prefill, StatedRouting::of(one));
    const Replay forward = replay(traces, mesh_,
                                  {.hardware = hardware_,
                                   .rules = {plan_.model, options_.format, DryPass::prefill, options_.weights},
                                   .gpus_per_node = gpus_per_node_});
    std::vector<double> stages;
    for (int stage = 0; stage < plan_.parallel.pp; ++stage) {
      stages.push_back(there_and_back(forward, mesh_.rank_at({.pp = stage})).total(step_.hides_tp));
    }
    return stages;
  }

  StageSeconds there_and_back(const Replay& forward, int rank) const {
    const int of_class = forward.class_of_rank[static_cast<std::size_t>(rank)];
    const std::vector<ClockStep>& program = forward.program(of_class);
    StageSeconds sum;
    for (const ClockItem& item : forward.of_rank(rank)) {
      const ClockStep& step = program[static_cast<std::size_t>(item.step)];
      const bool again = step.layer >= 0 && (step_.recompute == Recompute::layer ||
                                             (step_.recompute == Recompute::attention && is_core(step.op)));
      if (step.kind == ClockStep::Kind::compute) {
        sum.computing += ((has_two_gradients(step.op) ? 3 : 2) + (again ? 1 : 0)) * kernel_seconds(step);
      } else if (step.kind == ClockStep::Kind::call && step.axis != Axis::pp) {
        (step.axis == Axis::tp ? sum.over_tp : sum.over_others) += (again ? 3 : 2) * (item.end - item.begin);
      }
    }
    return sum;
  }

  double kernel_seconds(const ClockStep& step) const {
    if (!step_.scores_in_memory || !is_core(step.op)) return step.seconds;
    const AttentionSpec& spec = plan_.model.layers[step.layer].attention;
    const double seen = step.work.flops / (2.0 * static_cast<double>(spec.head_dim + spec.value_dim()));
    const auto keys = static_cast<double>(plan_.workload.lengths.front());
    const double pairs = seen * 2 * keys / (keys + 1);  // the causal half, and the other one
    KernelWork products = step.work;
    products.flops *= pairs / seen;
    return seconds_of(products, hardware_) +
           seconds_of({.flops = 0, .bytes = kScoreBytes * pairs, .rate = products.rate}, hardware_);
  }

  /// Of the stream of a microbatch to the next stage: parts, gathered there unless sequence parallelism keeps them.
  double message_seconds() const {
    const Parallel& p = plan_.parallel;
    if (p.pp == 1) return 0;
    const double bytes =
        static_cast<double>(step_.microbatch * plan_.workload.lengths.front() * plan_.model.hidden_size) / p.cp *
        ops::bytes_per_element(options_.format);
    const int rank = mesh_.rank_at({});
    const GroupShape pair = shape_of({rank, mesh_.rank_at({.pp = 1})}, gpus_per_node_);
    const double sent = collective_time(hardware_, pair, Operation::send, bytes / p.tp).seconds();
    if (p.sp) return sent;
    return sent + collective_time(hardware_, shape_of(mesh_.group(Axis::tp, rank), gpus_per_node_),
                                  Operation::all_gather, bytes * (p.tp - 1) / p.tp)
                      .seconds();
  }

  double most_parameters() const {
    double most = 0;
    for (int stage = 0; stage < plan_.parallel.pp; ++stage) {
      const Layout layout = make_layout(plan_.model, mesh_, mesh_.rank_at({.pp = stage}));
      most = std::max(most, static_cast<double>(held_parameters(layout, plan_.model).total()));
    }
    return most;
  }

  double gradient_seconds() const {
    const int dp = plan_.parallel.dp;
    const double wire = 2.0 * (dp - 1) / dp * most_parameters() * ops::bytes_per_element(options_.format);
    return collective_time(hardware_, shape_of(mesh_.group(Axis::dp, mesh_.rank_at({})), gpus_per_node_),
                           Operation::all_reduce, wire)
        .seconds();
  }

  double optimizer_seconds() const {
    return seconds_of({.flops = 0, .bytes = kOptimizerBytes * most_parameters(), .rate = Rate::fp32}, hardware_);
  }

  const Plan& plan_;
  const TrainingStep& step_;
  const HardwareModel& hardware_;
  const ProjectionOptions& options_;
  Mesh mesh_;
  int gpus_per_node_ = static_cast<int>(Hardware{}.gpus_per_node);
};

}  // namespace

double training_seconds(const Plan& plan, const TrainingStep& step, const HardwareModel& hardware,
                        const ProjectionOptions& options) {
  return TrainingClock(plan, step, hardware, options).seconds();
}

}  // namespace shardproof
