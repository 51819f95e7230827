#include "tests/search/exhaustive.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/plan/load.h"

namespace shardproof::testing {
namespace {

Plan plan_of_config(const std::string& model) {
  LoadedPlan loaded = parse_plan(R"({"model": "configs/)" + model + R"(.json", "parallel": {"tp": 1}})", model,
                                 std::filesystem::path(SHARDPROOF_SOURCE_DIR) / "plans" / "models");
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.plan.value_or(Plan{});
}

}  // namespace

std::size_t expect_best_of_all(const SearchCase& asked) {
  SearchSpace space{.base = plan_of_config(asked.model), .gpus = asked.gpus};
  Plan& base = space.base;
  base.hardware = Hardware{.gpus = asked.gpus};
  base.workload.serving =
      Serving{.requests = std::vector<Request>(static_cast<std::size_t>(asked.batch.requests),
                                               {.prompt = asked.batch.prompt, .output = asked.batch.output})};
  set_lengths(base.workload);
  SearchOptions options;
  options.hardware = choose_hardware(built_in_hardware(), base.hardware, {.preset = asked.preset});
  options.memory_bytes = asked.memory_gb * 1e9;
  options.projection = {.format = format_of(base.model)};
  options.threads = 2;
  std::size_t passed_over = 0;
  for (const Objective objective : {Objective::throughput, Objective::output_token, Objective::first_token}) {
    options.objective = objective;
    options.exhaustive = false;
    const SearchReport found = search(space, options);
    options.exhaustive = true;

    const SearchReport all = search(space, options);

    const std::string what = asked.model + ", " + std::string(to_string(objective));
    if (all.ranked.empty() || found.ranked.empty()) {
      ADD_FAILURE() << what << ": nothing fits";
      break;
    }
    passed_over += all.ranked.size() - found.ranked.size();
    EXPECT_EQ(found.ranked.front().cost, all.ranked.front().cost)
        << what << ": " << describe(all.ranked.front().choice) << " was passed over";
    EXPECT_EQ(found.ranked.front().choice, all.ranked.front().choice) << what;
  }
  return passed_over;
}

}  // namespace shardproof::testing
