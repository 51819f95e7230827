// A step of training held to its parts, counted by hand.
#include "emu/timeline/training_time.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/run/dry_run.h"
#include "emu/timeline/clock.h"
#include "emu/timeline/collective_time.h"
#include "ops/swiglu.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr ProjectionOptions kOptions{.format = ops::Format::bf16};

/// Dense, of four layers.
Plan dense(Parallel parallel) {
  Plan plan = testing::shipped_plan("models/llama-3.1-70b");
  plan.model.layers = LayerList(4, plan.model.layers[0]);
  plan.hardware = Hardware{.gpus = parallel.world(), .gpus_per_node = 8};
  plan.parallel = parallel;
  plan.parallel.edp = parallel.tp * parallel.cp * parallel.dp;
  plan.workload = {.lengths = {512}};
  return plan;
}

HardwareModel h100() {
  return built_in_hardware().find("h100")->model;
}

/// Nothing takes time but flops, at the whole peak.
HardwareModel flops_alone() {
  HardwareModel hardware = h100();
  hardware.compute = hardware.memory = Efficiency();
  hardware.memory_bytes_per_second = kInfinite;
  hardware.launch_seconds = hardware.overhead_seconds = 0;
  for (Link* link : {&hardware.inside, &hardware.across}) {
    link->bytes_per_second = kInfinite;
    link->base_seconds = link->step_seconds = link->direct_base_seconds = 0;
  }
  return hardware;
}

double seconds(const Plan& plan, const TrainingStep& step, const HardwareModel& hardware) {
  return training_seconds(plan, step, hardware, kOptions);
}

PassTiming forward(const Plan& plan, const HardwareModel& hardware) {
  return time_pass(plan, dry_run(plan, kOptions.format, DryPass::prefill, StatedRouting::of(plan)), DryPass::prefill,
                   hardware, kOptions);
}

TEST(TrainingTime, HasTwoProductsForEachOfTheForwardPassAndOneOfAllElse) {
  const Plan plan = dense({});
  const HardwareModel hardware = flops_alone();
  const ModelConfig& model = plan.model;
  double products = 2.0 * 512 * static_cast<double>(model.hidden_size * model.vocab_size);
  for (int layer = 0; layer < 4; ++layer) {
    const AttentionSpec& attention = model.layers[layer].attention;
    const auto hidden = static_cast<double>(model.hidden_size), head = static_cast<double>(attention.head_dim);
    const auto heads = static_cast<double>(attention.heads), kv_heads = static_cast<double>(attention.kv_heads);
    const auto width = static_cast<double>(model.layers[layer].feed_forward.mlp_size());
    products += 2 * 512 * hidden * head * 2 * (heads + kv_heads) + 4 * heads * head * (512 * 513 / 2);
    products += 512 * (6 * hidden * width + width * ops::swiglu_cost(1, 1, 1).flops);
  }

  const double once = seconds(plan, {.batch = 3}, hardware);

  const double flops = 3 * (2 * forward(plan, hardware).flops + products);
  EXPECT_NEAR(once, flops / hardware.peak(Rate::bf16), 1e-9 * once);
}

TEST(TrainingTime, RunsALayerOnceMoreToRecomputeIt) {
  const Plan plan = dense({.tp = 4});
  const HardwareModel hardware = h100();
  const Replay replayed = forward(plan, hardware).replay;
  double layers = 0, core = 0;
  for (const ClockItem& item : replayed.of_rank(0)) {
    const ClockStep& step = replayed.program(replayed.class_of_rank[0])[static_cast<std::size_t>(item.step)];
    if (step.layer >= 0) layers += item.end - item.begin;
    if (step.op == Op::attention_context) core += item.end - item.begin;
  }
  const auto of = [&](Recompute recompute) { return seconds(plan, {.batch = 5, .recompute = recompute}, hardware); };

  const double none = of(Recompute::none);

  EXPECT_NEAR(of(Recompute::layer) - none, 5 * layers, 1e-9 * none);
  EXPECT_NEAR(of(Recompute::attention) - none, 5 * core, 1e-9 * none);
  EXPECT_GT(core, 0);
}

TEST(TrainingTime, FillsThePipelineOnceInChunks) {
  const Plan plan = dense({.pp = 4});
  const HardwareModel hardware = flops_alone();
  const auto of = [&](std::int64_t batch, int chunks) {
    return seconds(plan, {.batch = batch, .chunks = chunks}, hardware);
  };

  const double slowest = of(9, 1) - of(8, 1), others = of(8, 1) - 8 * slowest;

  EXPECT_GT(others, 0);
  EXPECT_LT(others, 3 * slowest);  // the last stage has the head too
  EXPECT_NEAR(of(8, 2), 8 * slowest + others / 2, 1e-9 * slowest);
  EXPECT_NEAR(of(8, 1), seconds(dense({}), {.batch = 8}, hardware) / 8 + 7 * slowest, 1e-9 * slowest);
}

TEST(TrainingTime, AddsUpGradientsOverReplicasAfterThem) {
  const HardwareModel hardware = h100();
  const Plan one = dense({}), two = dense({.dp = 2});
  const double parameters =
      static_cast<double>(held_parameters(make_layout(one.model, Mesh(one.parallel), 0), one.model).total());
  const GroupShape pair{.ranks = 2, .nodes = 1, .per_node = 2};

  const double more = seconds(two, {.batch = 8}, hardware) - seconds(one, {.batch = 4}, hardware);

  EXPECT_NEAR(more, collective_time(hardware, pair, Operation::all_reduce, 2 * parameters).seconds(), 1e-9);
}

TEST(TrainingTime, HidesTheShorterOfProductsAndCallsOverTp) {
  const Plan plan = dense({.tp = 8, .sp = true});
  HardwareModel hardware = h100(), no_calls = flops_alone();
  no_calls.compute = hardware.compute;
  const TrainingStep shown{.batch = 2}, hidden{.batch = 2, .hides_tp = true};

  EXPECT_LT(seconds(plan, hidden, hardware), seconds(plan, shown, hardware));
  EXPECT_EQ(seconds(plan, hidden, no_calls), seconds(plan, shown, no_calls));
  hardware.inside.bytes_per_second /= 1000;
  EXPECT_GT(seconds(plan, hidden, hardware), 0.9 * seconds(plan, shown, hardware));
}

TEST(TrainingTime, WritesScoresWhereAttentionIsNotFused) {
  const Plan plan = dense({});
  HardwareModel hardware = flops_alone();
  const TrainingStep fused{.batch = 1}, written{.batch = 1, .scores_in_memory = true};
  double core = 0;
  for (int layer = 0; layer < 4; ++layer) {
    const AttentionSpec& attention = plan.model.layers[layer].attention;
    core += 4.0 * static_cast<double>(attention.heads * attention.head_dim) * (512 * 511 / 2);
  }

  const double more = seconds(plan, written, hardware) - seconds(plan, fused, hardware);

  EXPECT_NEAR(more, 3 * core / hardware.peak(Rate::bf16), 1e-9 * more);
  hardware.memory_bytes_per_second = 1e12;
  EXPECT_GT(seconds(plan, written, hardware) - seconds(plan, fused, hardware), more);
}

TEST(TrainingTime, IsNeverLongerOnFasterHardware) {
  const Plan plan = dense({.tp = 2, .dp = 2, .pp = 4, .sp = true});
  const TrainingStep step{.batch = 16, .microbatch = 2, .recompute = Recompute::layer};
  const HardwareModel base = h100();
  const double before = seconds(plan, step, base);
  for (const double factor : {1.5, 4.0}) {
    HardwareModel memory = base, links = base, products = base;
    memory.memory_bytes_per_second *= factor;
    links.inside.bytes_per_second *= factor;
    links.across.bytes_per_second *= factor;
    for (double& rate : products.flops_per_second) rate *= factor;
    for (const HardwareModel& faster : {memory, links, products}) EXPECT_LT(seconds(plan, step, faster), before);
  }
}

}  // namespace
}  // namespace shardproof
