#include "emu/report/timeline_trace.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "emu/paper/figures.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using Json = nlohmann::json;

Projection projected(const Plan& plan) {
  return project(plan, choose_hardware(built_in_hardware(), std::nullopt, {.preset = "h100"}),
                 {.format = ops::Format::bf16});
}

TEST(ChromeTrace, HasEverySecondOfEveryRank) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  plan.workload.routing.zipf = 1;
  const Projection p = projected(plan);

  const Json trace = Json::parse(chrome_trace(p, plan));

  std::map<std::pair<int, int>, double> ends, moving;
  double computing = 0, communicating = 0, waiting = 0;
  std::set<int> ranks;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X" || event["name"] == "engine") continue;
    ranks.insert(event["pid"].get<int>());
    double& end = ends[{event["pid"].get<int>(), event["tid"].get<int>()}];
    EXPECT_GE(event["ts"].get<double>(), end - 0.0021) << "slices of a track overlap: " << event;
    end = event["ts"].get<double>() + event["dur"].get<double>();
    const bool wait = event["cat"] == "wait";
    (event["tid"] == 0 ? computing : wait ? waiting : communicating) += event["dur"].get<double>() * 1e-6;
  }
  const double prefill = p.prefill.seconds * p.world, decode = p.decode.seconds * p.world;
  EXPECT_EQ(ranks.size(), 16u);
  EXPECT_NEAR(computing, p.prefill.computing * prefill + p.decode.computing * decode, 1e-4 * computing);
  EXPECT_NEAR(communicating, p.prefill.communicating * prefill + p.decode.communicating * decode, 1e-4 * communicating);
  EXPECT_GT(waiting, 0);
}

TEST(ChromeTrace, LeadsAFlowFromEveryMessageAndEveryStragglerOnce) {
  const Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");

  const Json trace = Json::parse(chrome_trace(projected(plan), plan));

  std::map<std::int64_t, int> begun, ended;
  int counters = 0, received = 0;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] == "s") ++begun[event["id"].get<std::int64_t>()];
    if (event["ph"] == "f") ++ended[event["id"].get<std::int64_t>()];
    if (event["ph"] == "C") ++counters;
    if (event["ph"] == "X" && event["name"] == "stage.receive") ++received;
  }
  EXPECT_EQ(begun, ended);
  EXPECT_GE(static_cast<int>(begun.size()), received);
  EXPECT_GT(received, 0);
  EXPECT_GT(counters, 0);
  for (const auto& [id, count] : begun) EXPECT_EQ(count, 1) << id;
}

TEST(ChromeTrace, ShowsWhatIsHiddenOnTracksOfItsOwn) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  plan.workload.serving.reset();
  plan.workload.token_ids.clear();
  plan.workload.lengths.assign(32, 64);
  plan.workload.microbatches = 4;
  plan.parallel.overlap = Overlap::two_batch;
  const Projection p = projected(plan);

  const Json trace = Json::parse(chrome_trace(p, plan));

  std::map<std::pair<int, int>, double> ends;
  double hidden = 0, said = 0;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    const Json args = event.value("args", Json::object());
    said += args.value("hidden_us", 0.0) * 1e-6;
    if (event.value("cat", "") != "hidden") continue;
    double& end = ends[{event["pid"].get<int>(), event["tid"].get<int>()}];
    EXPECT_GE(event["ts"].get<double>(), end - 0.0021) << "slices of a track overlap: " << event;
    EXPECT_GE(event["tid"].get<int>(), 2);
    end = event["ts"].get<double>() + event["dur"].get<double>();
    hidden += event["dur"].get<double>() * 1e-6;
  }
  const double expected = p.world * (p.prefill.hidden * p.prefill.seconds + p.decode.hidden * p.decode.seconds);
  EXPECT_GT(expected, 0);
  EXPECT_NEAR(hidden, expected, 1e-3 * expected);
  EXPECT_NEAR(said, expected, 1e-3 * expected);
}

TEST(ChromeTrace, CountsTheRowsOfEachExpertAndTheMemory) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  plan.workload.routing.zipf = 1;
  const Projection p = projected(plan);

  const Json trace = Json::parse(chrome_trace(p, plan));

  double rows = 0;
  std::map<int, double> cache, weights;
  std::set<std::string> experts;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "C" || event["ts"].get<double>() >= p.prefill.seconds * 1e6) continue;
    for (const auto& [name, value] : event["args"].items()) {
      if (event["name"] == "rows of experts") {
        rows += value.get<double>();
        experts.insert(name);
      } else {
        (name == "cache" ? cache : weights)[event["pid"].get<int>()] = value.get<double>();
      }
    }
  }
  double slots = 0;
  for (std::int64_t layer = 0; layer < plan.model.layers.size(); ++layer) {
    slots += static_cast<double>(plan.workload.prompts().tokens() * plan.model.layers[layer].feed_forward.top_k);
  }
  EXPECT_EQ(rows, slots * plan.parallel.etp) << "each rank of etp works on a slice of every row";
  EXPECT_EQ(std::ssize(experts), plan.model.experts().num_experts);
  for (const RankFigures& rank : rank_figures(plan)) {
    EXPECT_EQ(cache[rank.rank], rank.kv_cache_bytes) << rank.rank;
    EXPECT_EQ(weights[rank.rank], static_cast<double>(rank.parameters.total()) * dtype_bytes(plan.model));
  }
}

}  // namespace
}  // namespace shardproof
