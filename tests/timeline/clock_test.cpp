#include "emu/timeline/clock.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "emu/paper/figures.h"
#include "emu/timeline/projection.h"
#include "tests/support/random_plan.h"
#include "tests/support/shipped_plans.h"
#include "tests/timeline/rank_by_rank.h"

namespace shardproof {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

HardwareModel h100() {
  HardwareModel hardware = built_in_hardware().find("h100")->model;
  hardware.overhead_seconds = 0;
  return hardware;
}

PassTiming timed(const Plan& plan, DryPass pass, const HardwareModel& hardware,
                 WeightFormat weights = WeightFormat::as_run) {
  const ops::Format format = format_of(plan.model);
  return time_pass(plan, dry_run(plan, format, pass, StatedRouting::of(plan)), pass, hardware,
                   {.format = format, .weights = weights});
}

Plan drawn(int round) {
  Plan plan = testing::random_plan(testing::property_seed() + static_cast<std::uint64_t>(round), 48);
  plan.hardware = Hardware{.gpus = plan.world(), .gpus_per_node = 1 + round % 8};
  if (round % 3 == 1) plan.workload.routing.zipf = 1.2;
  return plan;
}

constexpr DryPass kPasses[] = {DryPass::prefill, DryPass::decode};

TEST(VirtualClock, HasEveryRankWaitAsIfItWereReplayedByItself) {
  int shared = 0;
  for (int round = 0; round < 60; ++round) {
    const Plan plan = drawn(round);
    HardwareModel hardware = h100();
    hardware.overhead_seconds = round % 2 == 0 ? 0 : 1e-3;
    const ops::Format format = format_of(plan.model);
    for (const DryPass pass : kPasses) {
      const DryTraces traces = dry_run(plan, format, pass, StatedRouting::of(plan));
      const Mesh mesh(plan.parallel);
      const ClockOptions options{.hardware = hardware,
                                 .rules = {plan.model, format, pass, {}},
                                 .gpus_per_node = static_cast<int>(plan.hardware->gpus_per_node)};

      const Replay replayed = replay(traces, mesh, options);
      const std::vector<double> ends = testing::rank_ends(traces, mesh, options);

      shared += static_cast<int>(replayed.items.size()) < plan.world() ? 1 : 0;
      for (int rank = 0; rank < plan.world(); ++rank) {
        const auto& items = replayed.of_rank(rank);
        EXPECT_EQ(items.empty() ? hardware.overhead_seconds : items.back().end, ends[static_cast<std::size_t>(rank)])
            << "rank " << rank << " of " << testing::describe(plan);
      }
    }
  }
  EXPECT_GT(shared, 20) << "classes of several ranks are hardly tested";
}

TEST(VirtualClock, AccountsForEverySecondOfEveryRank) {
  for (int round = 0; round < 60; ++round) {
    const Plan plan = drawn(round);
    HardwareModel hardware = h100();
    hardware.overhead_seconds = 1e-4;
    for (const DryPass pass : kPasses) {
      const PassTiming timing = timed(plan, pass, hardware);

      EXPECT_NEAR(timing.overhead + timing.computing + timing.communicating + timing.waiting + timing.bubble, 1, 1e-9);
      double path = timing.replay.overhead;
      for (const OpTime& op : timing.critical) path += op.seconds;
      EXPECT_NEAR(path / timing.seconds, 1, 1e-9) << testing::describe(plan);
      EXPECT_LE(timing.mfu, 1);
      EXPECT_LE(timing.bandwidth_share, 1);
    }
  }
}

TEST(VirtualClock, IsExactlyTwiceAsFastOnHardwareThatIs) {
  for (int round = 0; round < 20; ++round) {
    const Plan plan = drawn(round);
    HardwareModel once = h100();
    once.overhead_seconds = 1e-4;
    HardwareModel twice = once;
    for (double& rate : twice.flops_per_second) rate *= 2;
    twice.memory_bytes_per_second *= 2;
    twice.launch_seconds /= 2;
    twice.overhead_seconds /= 2;
    for (Link* link : {&twice.inside, &twice.across}) {
      link->bytes_per_second *= 2;
      link->base_seconds /= 2;
      link->step_seconds /= 2;
      link->direct_base_seconds /= 2;
    }
    for (const DryPass pass : kPasses) {
      const PassTiming slow = timed(plan, pass, once), fast = timed(plan, pass, twice);

      EXPECT_EQ(fast.seconds, slow.seconds / 2) << testing::describe(plan);
      EXPECT_EQ(fast.period, slow.period / 2) << testing::describe(plan);
    }
  }
}

TEST(VirtualClock, IsNeverSlowerOnFasterHardware) {
  for (int round = 0; round < 20; ++round) {
    const Plan plan = drawn(round);
    for (const DryPass pass : kPasses) {
      const double before = timed(plan, pass, h100()).seconds;
      const auto faster = [&](const auto& change) {
        HardwareModel hardware = h100();
        change(hardware);
        return timed(plan, pass, hardware).seconds;
      };

      EXPECT_LE(faster([](HardwareModel& h) { h.memory_bytes_per_second *= 1.3; }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.flops_per_second.fill(3e15); }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.inside.bytes_per_second *= 1.3; }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.across.bytes_per_second *= 1.3; }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.across.step_seconds *= 0.7; }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.launch_seconds *= 0.7; }), before);
      EXPECT_LE(faster([](HardwareModel& h) { h.memory = h.memory.scaled(1.1); }), before);
    }
  }
}

TEST(VirtualClock, IsNeverSlowerWithFewerTokens) {
  for (const char* name : testing::kShippedPlans) {
    Plan plan = testing::shipped_plan(name);
    double before[2] = {kInfinite, kInfinite};
    for (int halvings = 0; halvings < 4; ++halvings) {
      for (const DryPass pass : kPasses) {
        const double seconds = timed(plan, pass, h100()).seconds;
        double& last = before[pass == DryPass::decode ? 1 : 0];
        EXPECT_LE(seconds, last) << name;
        last = seconds;
      }
      for (std::int64_t& length : plan.workload.lengths) length = std::max<std::int64_t>(1, length / 2);
    }
  }
}

Plan on_one_gpu() {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.parallel = {};
  plan.workload.microbatches = 1;
  return plan;
}

TEST(VirtualClock, HasNoCommunicationOnOneGpu) {
  const PassTiming timing = timed(on_one_gpu(), DryPass::prefill, h100());

  EXPECT_TRUE(timing.communication.empty());
  EXPECT_NEAR(timing.computing, 1, 1e-12);
}

TEST(VirtualClock, IsFlopsAloneWhereNothingElseTakesTime) {
  HardwareModel hardware;
  hardware.flops_per_second.fill(1e12);
  hardware.memory_bytes_per_second = kInfinite;
  const Plan plan = on_one_gpu();

  const PassTiming timing = timed(plan, DryPass::prefill, hardware);

  EXPECT_NEAR(timing.seconds, rank_figures(plan)[0].prefill.flops() / 1e12, 1e-9 * timing.seconds);
  EXPECT_NEAR(timing.mfu, 1, 1e-9);
}

TEST(VirtualClock, IsCommunicationAloneWhereComputingTakesNoTime) {
  const Plan plan = testing::shipped_plan("ep64_tp2");
  HardwareModel hardware = h100();
  hardware.flops_per_second.fill(kInfinite);
  hardware.memory_bytes_per_second = kInfinite;
  hardware.launch_seconds = 0;

  const PassTiming timing = timed(plan, DryPass::prefill, hardware);
  double moving = 0;
  for (const CommunicationTime& total : timing.communication) moving += total.moving;

  EXPECT_GT(moving, 0);
  EXPECT_NEAR(timing.seconds, moving, 1e-9 * moving);
}

TEST(VirtualClock, FindsTheBubbleOfAPipeline) {
  // Eight microbatches through four stages of two equal layers, the head small beside them: 3 / 11.
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.model.vocab_size = 64;
  HardwareModel hardware = h100();
  for (Link* link : {&hardware.inside, &hardware.across}) *link = {.bytes_per_second = kInfinite};

  const PassTiming timing = timed(plan, DryPass::prefill, hardware);

  EXPECT_NEAR(timing.bubble, 3.0 / 11, 0.005);
}

TEST(VirtualClock, FillsThePipelineWithDecodeStepsInARow) {
  // With as many microbatches as stages a token takes one round of the pipeline, not the filling of it.
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.model.vocab_size = 64;
  plan.workload.microbatches = 4;
  HardwareModel hardware = h100();
  for (Link* link : {&hardware.inside, &hardware.across}) *link = {.bytes_per_second = kInfinite};

  const PassTiming timing = timed(plan, DryPass::decode, hardware);
  plan.workload.microbatches = 1;
  const PassTiming alone = timed(plan, DryPass::decode, hardware);

  EXPECT_NEAR(timing.period / timing.seconds, 4.0 / 7, 0.02);
  EXPECT_NEAR(alone.period / alone.seconds, 1, 1e-9) << "one microbatch waits for its own token";
}

TEST(VirtualClock, LetsRanksWaitForTheOneWithTheMostTokens) {
  Plan plan = testing::shipped_plan("ep64_tp2");
  const PassTiming even = timed(plan, DryPass::prefill, h100());
  plan.workload.routing.zipf = 1.2;

  const PassTiming skewed = timed(plan, DryPass::prefill, h100());

  EXPECT_NEAR(even.waiting, 0, 1e-3);
  EXPECT_GT(skewed.waiting, 0.1);
  EXPECT_GT(skewed.seconds, 1.5 * even.seconds);
}

TEST(VirtualClock, ReadsQuantisedWeightsInTheirWidthAndTheCacheOnce) {
  Plan plan = on_one_gpu();
  plan.workload.lengths.assign(1, 4096);
  HardwareModel hardware;
  hardware.flops_per_second.fill(kInfinite);
  hardware.memory_bytes_per_second = 1;

  const double full = timed(plan, DryPass::decode, hardware).bytes;
  const double fp8 = timed(plan, DryPass::decode, hardware, WeightFormat::fp8).bytes;
  plan.workload.lengths[0] = 8192;
  const double longer = timed(plan, DryPass::decode, hardware).bytes;

  // 8 layers: 4 attention matrices of 8192^2, two of four experts' 3 * 8192 * 18432, in one byte in place of two.
  const double elements = 8 * (4 * 8192.0 * 8192 + 2 * 3 * 8192.0 * 18432);
  EXPECT_NEAR(full - fp8, elements, 1e-6 * elements);
  // Keys and values of 64 heads of 128.
  EXPECT_NEAR(longer - full, 4096.0 * 8 * 2 * 64 * 128 * 2, 1);
}

TEST(VirtualClock, WorksOnLatentsInDecode) {
  LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/models/deepseek-v3.json");
  ASSERT_TRUE(loaded.plan);
  Plan plan = *loaded.plan;
  plan.parallel = {};
  plan.workload.lengths.assign(1, 1000);
  const auto bytes = [&] { return timed(plan, DryPass::decode, h100(), WeightFormat::fp8).bytes; };

  const double before = bytes();
  plan.workload.lengths[0] = 2000;

  // The cache of a token: 512 + 64 values a layer, whatever the heads.
  EXPECT_NEAR(bytes() - before, 1000.0 * 61 * 576 * 2, 1);
}

TEST(VirtualClock, ReadsTheWeightOfAbsorbedHeadsOnceAndTheirLatentsInTheWidthOfTheCache) {
  LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/models/deepseek-v3.json");
  ASSERT_TRUE(loaded.plan);
  Plan plan = *loaded.plan;
  plan.parallel = {};
  plan.workload.lengths.assign(2, 1000);
  const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));
  const auto bytes = [&](std::initializer_list<Op> ops, const WorkRules& rules) {
    double sum = 0;
    for (const OpRecord& record : decode.of(0).ops) {
      if (record.layer == 0 && std::ranges::find(ops, record.op) != ops.end()) sum += work_of(record, rules).bytes;
    }
    return sum;
  };
  const WorkRules as_run{.model = plan.model, .format = ops::Format::bf16, .pass = DryPass::decode};
  WorkRules fp8 = as_run;
  fp8.weights = WeightFormat::fp8;
  fp8.cache_bytes = 1;

  // Keys and values of 128 heads of 128 each from latents of 512; 1001 tokens of two sequences, each 512 + 64 values.
  const double weight = 128.0 * (128 + 128) * 512, kept = quantised_bytes_of_value(plan.model.quantisation, 128);
  EXPECT_NEAR(bytes({Op::attention_absorb, Op::attention_expand}, as_run) -
                  bytes({Op::attention_absorb, Op::attention_expand}, fp8),
              weight * (2 - kept), 1);
  EXPECT_DOUBLE_EQ(bytes({Op::attention_latent_context}, as_run) - bytes({Op::attention_latent_context}, fp8),
                   2.0 * 1001 * 576);
}

TEST(VirtualClock, ReadsWhatARankOfDcpKeepsInTheWidthOfTheCache) {
  struct Case {
    const char* plan;
    int tp;
    double elements;  ///< of a token that the rank keeps: latents, or keys and values of its heads
  };
  for (const Case& one : {Case{"models/deepseek-v3", 8, 576}, Case{"models/qwen3-235b-a22b", 8, 2 * 128}}) {
    Plan plan = testing::shipped_plan(one.plan);
    plan.parallel = {.tp = one.tp, .edp = one.tp, .dcp = 2};
    plan.workload.lengths.assign(2, 1001);
    const DryTraces decode = dry_run(plan, ops::Format::bf16, DryPass::decode, StatedRouting::of(plan));
    const auto bytes = [&](int of_cache) {
      double sum = 0;
      for (const OpRecord& record : decode.of(0).ops) {
        if (record.layer != 0 || record.op != Op::attention_dcp_part) continue;
        sum += work_of(
                   record,
                   {.model = plan.model, .format = ops::Format::bf16, .pass = DryPass::decode, .cache_bytes = of_cache})
                   .bytes;
      }
      return sum;
    };

    // Of two sequences of 1002 tokens, every other one.
    EXPECT_DOUBLE_EQ(bytes(2) - bytes(1), 2.0 * 501 * one.elements) << one.plan;
  }
}

TEST(Projection, GivesIntervalsThatHoldTheValue) {
  const Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  const HardwareChoice hardware = choose_hardware(built_in_hardware(), plan.hardware, {});

  const Projection p = project(plan, hardware, {.format = ops::Format::fp16});

  for (const Interval& interval :
       {p.seconds_to_first_token(0.5), p.seconds_to_first_token(1), p.seconds_per_output_token(),
        p.prompt_tokens_per_second(), p.output_tokens_per_second()}) {
    EXPECT_LT(interval.low, interval.value);
    EXPECT_LT(interval.value, interval.high);
  }
  EXPECT_LT(p.seconds_to_first_token(0.5).value, p.seconds_to_first_token(1).value);
  EXPECT_DOUBLE_EQ(p.seconds_to_first_token(1).value, p.prefill.seconds + p.hardware.model.request_overhead_seconds);
  EXPECT_DOUBLE_EQ(p.prompt_tokens_per_second().value, p.prefill.tokens / p.prefill.seconds);
  EXPECT_EQ(p.nodes(), 2);
}

}  // namespace
}  // namespace shardproof
