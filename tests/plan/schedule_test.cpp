#include "emu/plan/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Workload served(Serving serving) {
  Workload workload;
  workload.serving = std::move(serving);
  set_lengths(workload);
  return workload;
}

TEST(Schedule, RunsWholeSequencesInOneStep) {
  const Workload workload{.lengths = {3, 1, 2}};

  const std::vector<ReplicaSchedule> schedule = make_schedule({.dp = 2}, workload);

  ASSERT_EQ(schedule.size(), 2U);
  EXPECT_THAT(schedule[0], ElementsAre(ElementsAre(Chunk{0, 0, 3}, Chunk{1, 0, 1})));
  EXPECT_THAT(schedule[1], ElementsAre(ElementsAre(Chunk{2, 0, 2})));
}

// The example of the header.
TEST(Schedule, RunsDecodesFirstAndCutsPromptsToWhatIsLeft) {
  const Workload workload =
      served({.requests = {{.prompt = 4, .output = 3}, {.prompt = 5, .output = 3}}, .max_tokens_per_step = 6});

  EXPECT_THAT(make_schedule({}, workload)[0],
              ElementsAre(ElementsAre(Chunk{0, 0, 4}, Chunk{1, 0, 2}), ElementsAre(Chunk{0, 4, 1}, Chunk{1, 2, 3}),
                          ElementsAre(Chunk{0, 5, 1}, Chunk{1, 5, 1}), ElementsAre(Chunk{1, 6, 1})));
}

TEST(Schedule, AdmitsInOrderOfArrivalWhileThereIsRoom) {
  const Workload workload = served(
      {.requests = {{.prompt = 2, .output = 2, .arrival = 1}, {.prompt = 3}, {.prompt = 1}}, .max_sequences = 1});

  EXPECT_THAT(make_schedule({}, workload)[0], ElementsAre(ElementsAre(Chunk{1, 0, 3}), ElementsAre(Chunk{2, 0, 1}),
                                                          ElementsAre(Chunk{0, 0, 2}), ElementsAre(Chunk{0, 2, 1})));
}

TEST(Schedule, AdmitsARequestOnlyWhenTheCacheHasBlocksForAllItsTokens) {
  const Workload workload =
      served({.requests = {{.prompt = 4, .output = 2}, {.prompt = 2}}, .kv_block_size = 2, .kv_blocks = 3});

  EXPECT_THAT(make_schedule({}, workload)[0],
              ElementsAre(ElementsAre(Chunk{0, 0, 4}), ElementsAre(Chunk{0, 4, 1}), ElementsAre(Chunk{1, 0, 2})));
}

TEST(Schedule, KeepsReplicasInStepAndDropsStepsInWhichNobodyHasWork) {
  const Workload workload =
      served({.requests = {{.prompt = 2, .output = 2}, {.prompt = 1, .output = 1, .arrival = 900}}});

  const std::vector<ReplicaSchedule> schedule = make_schedule({.dp = 2}, workload);

  EXPECT_EQ(count_steps({.dp = 2}, workload), 3);
  EXPECT_THAT(schedule[0], ElementsAre(ElementsAre(Chunk{0, 0, 2}), ElementsAre(Chunk{0, 2, 1}), IsEmpty()));
  EXPECT_THAT(schedule[1], ElementsAre(IsEmpty(), IsEmpty(), ElementsAre(Chunk{1, 0, 1})));
}

TEST(Schedule, DoesWhatIsStated) {
  const Workload workload = served({.requests = {{.prompt = 3}, {.prompt = 2}},
                                    .steps = {{{.request = 1, .tokens = 1}}, {{.request = 1, .tokens = 1}, {0, 3}}}});

  EXPECT_THAT(make_schedule({}, workload)[0],
              ElementsAre(ElementsAre(Chunk{1, 0, 1}), ElementsAre(Chunk{0, 0, 3}, Chunk{1, 1, 1})));
}

TEST(Schedule, CountsTheBlocksThatAreInUseAtOnce) {
  const Serving serving{.requests = {{.prompt = 5, .output = 2}, {.prompt = 2}}, .kv_block_size = 4, .steps = {}};
  Serving one_by_one = serving;
  one_by_one.max_sequences = 1;

  EXPECT_EQ(kv_blocks_of(serving, make_schedule({}, served(serving))[0], 1), 3);
  EXPECT_EQ(kv_blocks_of(one_by_one, make_schedule({}, served(one_by_one))[0], 1), 2);
}

// Whatever the limits: every token once, in order, within them.
TEST(Schedule, OfRandomRequestsRunsEveryTokenOnceWithinTheLimits) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    const Plan plan = testing::serving(testing::random_plan(seed, 8), seed);
    const Serving& serving = *plan.workload.serving;
    std::map<std::int64_t, std::int64_t> run;
    for (const ReplicaSchedule& replica : make_schedule(plan.parallel, plan.workload)) {
      if (serving.kv_blocks > 0) {
        Serving free = serving;
        free.kv_blocks = 0;
        EXPECT_LE(kv_blocks_of(free, replica, plan.parallel.dcp), serving.kv_blocks) << testing::describe(plan);
      }
      for (const std::vector<Chunk>& step : replica) {
        std::int64_t tokens = 0;
        for (const Chunk& chunk : step) {
          EXPECT_EQ(chunk.begin, run[chunk.sequence]) << testing::describe(plan);
          run[chunk.sequence] += chunk.count;
          tokens += chunk.count;
        }
        EXPECT_TRUE(std::ranges::is_sorted(step, {}, &Chunk::sequence));
        if (serving.max_tokens_per_step > 0) {
          EXPECT_LE(tokens, serving.max_tokens_per_step);
        }
        if (serving.max_sequences > 0) {
          EXPECT_LE(std::ssize(step), serving.max_sequences);
        }
      }
    }
    for (std::size_t i = 0; i < serving.requests.size(); ++i) {
      EXPECT_EQ(run[static_cast<std::int64_t>(i)], serving.requests[i].tokens()) << testing::describe(plan);
    }
  }
}

}  // namespace
}  // namespace shardproof
