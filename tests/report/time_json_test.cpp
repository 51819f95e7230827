// The report of `time`, on any number of threads.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "emu/report/json.h"
#include "emu/timeline/projection.h"
#include "emu/timeline/request_times.h"
#include "ops/threads.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

std::string report(const Plan& plan) {
  const HardwareChoice hardware = choose_hardware(built_in_hardware(), std::nullopt, {.preset = "h100"});
  const ProjectionOptions options{.format = ops::Format::bf16};
  const Projection projection = project(plan, hardware, options);
  if (!plan.workload.serving) return to_json(projection, plan);
  const RequestTimes requests = time_requests(plan, hardware, options);
  return to_json(projection, plan, &requests);
}

TEST(TimeJson, IsTheSameOnAnyNumberOfThreads) {
  Plan served = testing::shipped_plan("ep16_tp2_pp4");
  served.workload.serving = Serving{.requests = std::vector<Request>(96, {.prompt = 300, .output = 20})};
  for (std::size_t i = 0; i < 96; ++i) served.workload.serving->requests[i].arrival_s = 1e-3 * static_cast<double>(i);
  set_lengths(served.workload);
  served.workload.routing.zipf = 1.1;
  for (const Plan& plan : {served, testing::shipped_plan("ep4_tp2_pp2_sp"), testing::shipped_plan("cp4_tp2_ep4")}) {
    const std::string alone = report(plan);
    for (const int threads : {1, 2, 7}) {
      std::vector<std::string> reports(static_cast<std::size_t>(threads));
      {
        std::vector<std::jthread> callers;
        for (std::string& own : reports) {
          callers.emplace_back([&own, &plan, threads] {
            const ops::ThreadScope scope(threads);
            own = report(plan);
          });
        }
      }
      for (const std::string& own : reports) EXPECT_EQ(own, alone) << plan.name << ", " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace shardproof
