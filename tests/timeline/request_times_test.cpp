// Requests over time, held to the clock's passes and to arithmetic by hand.
#include "emu/timeline/request_times.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "emu/paper/figures.h"
#include "emu/plan/schedule.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

HardwareChoice card() {
  return choose_hardware(built_in_hardware(), std::nullopt, {.preset = "h100"});
}

/// Served by as many replicas as it has, on a stage each.
Plan serving(std::vector<Request> requests, int pp = 1) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  plan.hardware.reset();
  plan.parallel = {.tp = 2, .dp = 2, .pp = pp, .ep = 4};
  plan.workload = {};
  plan.workload.serving = Serving{.requests = std::move(requests)};
  set_lengths(plan.workload);
  return plan;
}

RequestTimes timed(const Plan& plan) {
  return time_requests(plan, card(), {.format = format_of(plan.model)});
}

Projection projected(const Plan& plan) {
  return project(plan, card(), {.format = format_of(plan.model)});
}

TEST(RequestTimes, BeginWithThePrefillOfAllThatComeAtOnce) {
  const Plan plan = serving(std::vector<Request>(8, {.prompt = 96, .output = 1}));

  const RequestTimes times = timed(plan);

  EXPECT_EQ(times.steps, 1);
  EXPECT_DOUBLE_EQ(times.seconds, projected(plan).prefill.seconds);
  EXPECT_EQ(times.busy, times.seconds);
  EXPECT_DOUBLE_EQ(times.first_token(1).value, projected(plan).prefill.seconds + card().model.request_overhead_seconds);
  EXPECT_EQ(times.output_token(0.5).value, 0);
  EXPECT_DOUBLE_EQ(times.tokens_per_second().value, 8 / times.seconds);
}

TEST(RequestTimes, GoOnWithDecodeStepsAsTheyAreProjected) {
  for (const int pp : {1, 2}) {
    // 127 tokens of a sequence are cached before the last: 64 + 63, two grains of 64.
    const Plan plan = serving(std::vector<Request>(8, {.prompt = 127, .output = 2}), pp);
    Plan longer = plan;
    longer.workload.serving.reset();
    longer.workload.lengths.assign(8, 128);

    const RequestTimes times = timed(plan);

    EXPECT_EQ(times.steps, 2);
    EXPECT_NEAR(times.output_token(1).value, projected(longer).decode.period, 1e-12) << pp;
  }
}

TEST(RequestTimes, AreThoseOfOneAloneWhereTheyComeFarApart) {
  const Plan alone = serving({{.prompt = 64, .output = 4}, {.prompt = 1, .output = 0, .arrival_s = 50}});
  const Plan apart = serving({{.prompt = 64, .output = 4},
                              {.prompt = 64, .output = 4, .arrival_s = 100},
                              {.prompt = 64, .output = 4, .arrival_s = 300},
                              {.prompt = 64, .output = 4, .arrival_s = 200}});

  const RequestTimes one = timed(alone), all = timed(apart);

  for (const RequestTime& request : all.requests) {
    EXPECT_NEAR(request.first_token - request.arrival, one.requests[0].first_token, 1e-10);
    EXPECT_NEAR(request.last_token - request.arrival, one.requests[0].last_token, 1e-10);
  }
  EXPECT_GT(all.seconds, 300);
  EXPECT_LT(all.busy, 1);
  // Two replicas: which of them serves is another shape.
  EXPECT_LE(all.shapes, 4);
  EXPECT_EQ(all.steps, 16);
}

TEST(RequestTimes, CountFromTheStepThatARequestComesIn) {
  const Plan plan = serving({{.prompt = 64, .output = 9}, {.prompt = 64, .output = 2, .arrival = 3}});

  const RequestTimes times = timed(plan);

  EXPECT_EQ(times.steps, count_steps(plan.parallel, plan.workload));
  EXPECT_GT(times.requests[1].arrival, times.requests[0].first_token);
  EXPECT_LT(times.requests[1].arrival, times.requests[1].first_token);
  EXPECT_LT(times.requests[1].last_token, times.requests[0].last_token);
}

TEST(RequestTimes, WaitLongerWhereAStepTakesFewTokens) {
  Plan plan = serving(std::vector<Request>(16, {.prompt = 128, .output = 8}));
  const RequestTimes free = timed(plan);
  plan.workload.serving->max_tokens_per_step = 128;

  const RequestTimes limited = timed(plan);

  EXPECT_GT(limited.steps, free.steps);
  EXPECT_GT(limited.first_token(0.99).value, free.first_token(0.99).value);
  EXPECT_LT(limited.first_token(0.01).value, free.first_token(0.99).value);
  EXPECT_LE(limited.first_token(0.5).value, limited.first_token(0.9).value);
  EXPECT_LE(limited.first_token(0.9).value, limited.first_token(0.99).value);
}

TEST(RequestTimes, TakeTheStepsThatAPlanStates) {
  Plan plan = serving({{.prompt = 8, .output = 2}, {.prompt = 4, .output = 1}});
  plan.workload.serving->steps = {{{0, 5}}, {{0, 3}, {1, 4}}, {{0, 1}}};

  const RequestTimes times = timed(plan);

  EXPECT_EQ(times.steps, 3);
  EXPECT_EQ(times.requests[0].first_token, times.requests[1].first_token);
  EXPECT_EQ(times.requests[0].last_token, times.seconds);
}

TEST(RequestTimes, ReadWhatIsCachedOfAPromptThatIsCut) {
  // The second half of a prompt reads the first half's keys and values: it takes longer than the first.
  Plan plan = serving({{.prompt = 8192, .output = 1}, {.prompt = 8192, .output = 1}});
  plan.workload.serving->max_tokens_per_step = 4096;

  const RequestTimes times = timed(plan);

  ASSERT_EQ(times.steps, 2);
  const Plan half = serving({{.prompt = 4096, .output = 1}, {.prompt = 4096, .output = 1}});
  EXPECT_GT(times.seconds, 2 * timed(half).seconds);
}

TEST(RequestTimes, ReplayAThousandRequestsByTheirShapes) {
  std::vector<Request> requests;
  for (int i = 0; i < 1000; ++i) {
    requests.push_back({.prompt = 100 + 37 * (i % 50), .output = 1 + i % 64, .arrival_s = 0.002 * i});
  }
  Plan plan = serving(std::move(requests));
  plan.workload.serving->max_tokens_per_step = 2048;

  const RequestTimes times = timed(plan);

  EXPECT_LT(times.shapes, times.steps);
  for (const RequestTime& request : times.requests) {
    EXPECT_GT(request.first_token, request.arrival);
    EXPECT_GE(request.last_token, request.first_token);
  }
}

}  // namespace
}  // namespace shardproof
