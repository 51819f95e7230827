#include "emu/plan/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "emu/plan/prefix.h"
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
  std::int64_t shared = 0;
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
          if (chunk.prefix_of >= 0) {
            EXPECT_EQ(run[chunk.sequence], 0) << testing::describe(plan);
            EXPECT_GE(run[chunk.prefix_of], chunk.begin) << testing::describe(plan);
            EXPECT_GE(common_prefix(plan.workload, chunk.sequence, chunk.prefix_of), chunk.begin);
            EXPECT_EQ(chunk.begin % serving.tokens_of_block(plan.parallel.dcp), 0) << testing::describe(plan);
            shared += run[chunk.sequence] = chunk.begin;
          }
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
  EXPECT_GT(shared, 100);
}

/// Blocks of 4 tokens, of which prompts that begin alike share the full ones.
Serving with_prefixes(std::vector<Request> requests) {
  return {.requests = std::move(requests), .kv_block_size = 4, .prefix_sharing = true, .steps = {}};
}

TEST(Schedule, DoesNotRunWhatFullBlocksInTheCacheHold) {
  const Workload workload = served(
      with_prefixes({{.prompt = 7, .output = 3, .prefix = 6}, {.prompt = 7, .output = 1, .arrival = 1, .prefix = 6}}));

  EXPECT_THAT(make_schedule({}, workload)[0],
              ElementsAre(ElementsAre(Chunk{0, 0, 7}), ElementsAre(Chunk{0, 7, 1}, Chunk{1, 4, 3, 0}),
                          ElementsAre(Chunk{0, 8, 1})));
}

TEST(Schedule, RunsAtLeastTheLastTokenOfAPrompt) {
  const Workload workload = served(
      with_prefixes({{.prompt = 8, .output = 3, .prefix = 8}, {.prompt = 8, .output = 1, .arrival = 1, .prefix = 8}}));

  EXPECT_THAT(make_schedule({}, workload)[0][1], ElementsAre(Chunk{0, 8, 1}, Chunk{1, 4, 4, 0}));
}

TEST(Schedule, SharesWithinAStepWithARequestBeforeInTheBatch) {
  const Workload workload = served(with_prefixes({{.prompt = 9, .prefix = 8}, {.prompt = 9, .prefix = 8}}));
  Workload turned = workload;
  turned.serving->requests[0].arrival = turned.serving->requests[1].arrival = 0;
  turned.serving->requests[0].prefix_group = 1;

  EXPECT_THAT(make_schedule({}, workload)[0], ElementsAre(ElementsAre(Chunk{0, 0, 9}, Chunk{1, 8, 1, 0})));
  EXPECT_THAT(make_schedule({}, turned)[0], ElementsAre(ElementsAre(Chunk{0, 0, 9}, Chunk{1, 0, 9})));
}

TEST(Schedule, SharesNothingWithARequestThatIsDone) {
  const Workload workload =
      served(with_prefixes({{.prompt = 9, .prefix = 8}, {.prompt = 9, .arrival = 1, .prefix = 8}}));

  EXPECT_THAT(make_schedule({}, workload)[0], ElementsAre(ElementsAre(Chunk{0, 0, 9}), ElementsAre(Chunk{1, 0, 9})));
}

TEST(Schedule, CountsSharedBlocksOnce) {
  const Serving alike =
      with_prefixes({{.prompt = 9, .output = 2, .prefix = 8}, {.prompt = 9, .output = 2, .prefix = 8}});
  Serving alone = alike;
  alone.prefix_sharing = false;
  Serving tight = alike;
  tight.kv_blocks = 4;

  EXPECT_EQ(kv_blocks_of(alike, make_schedule({}, served(alike))[0], 1), 4);
  EXPECT_EQ(kv_blocks_of(alone, make_schedule({}, served(alone))[0], 1), 6);
  EXPECT_EQ(count_steps({}, served(tight)), 2);
}

TEST(Schedule, SharesWhatStatedTokensHaveInCommon) {
  Workload workload = served(with_prefixes({{.prompt = 6, .output = 2}, {.prompt = 6, .output = 2}}));
  workload.token_ids = {{1, 2, 3, 4, 5, 6, 7}, {1, 2, 3, 4, 9, 6, 7}};

  EXPECT_THAT(make_schedule({}, workload)[0][0], ElementsAre(Chunk{0, 0, 6}, Chunk{1, 4, 2, 0}));
}

}  // namespace
}  // namespace shardproof
