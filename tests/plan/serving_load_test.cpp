// Workloads of requests, read, refused and written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "emu/plan/load.h"
#include "emu/plan/runnable.h"
#include "emu/plan/save.h"
#include "emu/plan/validate.h"

namespace shardproof {
namespace {

std::string served_text(const std::string& workload, const std::string& parallel = R"({"dp": 2})") {
  return R"({"model": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
             "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 100, "max_position_embeddings": 50},
             "parallel": )" +
         parallel + R"(, "workload": )" + workload + "}";
}

Plan parsed_workload(const std::string& workload) {
  const LoadedPlan loaded = parse_plan(served_text(workload), "plan.json", ".");
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.plan.value_or(Plan{});
}

/// What is wrong with it, whether it is read or validated.
std::string problems_of(const std::string& workload) {
  LoadedPlan loaded = parse_plan(served_text(workload), "plan.json", ".");
  if (loaded.plan) loaded.problems = validate(*loaded.plan);
  std::string text;
  for (const Problem& problem : loaded.problems) text += problem.field + ": " + problem.message + "\n";
  return text;
}

TEST(ServingWorkload, IsReadWithItsDefaults) {
  const Plan plan = parsed_workload(R"({"requests": [{"prompt": 9, "output": 4, "arrival": 2}, {"prompt": 3}]})");

  ASSERT_TRUE(plan.workload.serving.has_value());
  EXPECT_THAT(plan.workload.serving->requests, ::testing::ElementsAre(Request{9, 4, 2}, Request{3, 0, 0}));
  EXPECT_THAT(plan.workload.lengths, ::testing::ElementsAre(12, 3));
  EXPECT_EQ(plan.workload.serving->kv_block_size, 16);
  EXPECT_EQ(plan.workload.serving->max_tokens_per_step, 0);
}

TEST(ServingWorkload, MayBeOneForAll) {
  const Plan plan =
      parsed_workload(R"({"batch": 3, "prompt": 8, "output": 5, "max_num_batched_tokens": 4, "max_num_seqs": 2,
                               "block_size": 2, "num_gpu_blocks_override": 9})");

  EXPECT_THAT(plan.workload.lengths, ::testing::ElementsAre(12, 12, 12));
  EXPECT_EQ(plan.workload.serving->max_tokens_per_step, 4);
  EXPECT_EQ(plan.workload.serving->max_sequences, 2);
  EXPECT_EQ(plan.workload.serving->kv_block_size, 2);
  EXPECT_EQ(plan.workload.serving->kv_blocks, 9);
}

TEST(ServingWorkload, IsNoneWhereNothingSaysThatThereAreRequests) {
  EXPECT_FALSE(parsed_workload(R"({"batch": 3, "sequence": 8})").workload.serving.has_value());
}

TEST(ServingWorkload, IsWrittenAsItIsRead) {
  for (const char* workload :
       {R"({"requests": [{"prompt": 9, "output": 4, "arrival": 2}, {"prompt": 3}], "max_tokens_per_step": 5})",
        R"({"requests": [{"prompt": 3}], "kv_block_size": 4, "kv_blocks": 7, "max_sequences": 1})",
        R"({"requests": [{"prompt": 3, "prefix": 2, "prefix_group": 1}, {"prompt": 3}]})",
        R"({"requests": [{"prompt": 3, "prefix": 2}], "prefix_sharing": false})",
        R"({"requests": [{"prompt": 3}], "enable_prefix_caching": true})",
        R"({"requests": [{"prompt": 3}, {"prompt": 2}],
            "steps": [[{"request": 0, "tokens": 2}, {"request": 1, "tokens": 2}], [{"request": 0, "tokens": 1}]]})"}) {
    const Plan plan = parsed_workload(workload);
    const LoadedPlan again = parse_plan(plan_json(plan), "again.json", ".");
    ASSERT_TRUE(again.plan.has_value());
    EXPECT_EQ(again.plan->workload.serving, plan.workload.serving);
    EXPECT_EQ(again.plan->workload.lengths, plan.workload.lengths);
    EXPECT_EQ(again.plan->model.max_position_embeddings, 50);
  }
}

TEST(ServingWorkload, SharesPrefixesWhereSomeAreStated) {
  const auto sharing = [](const std::string& workload) {
    return parsed_workload(workload).workload.serving->prefix_sharing;
  };

  EXPECT_TRUE(sharing(R"({"requests": [{"prompt": 3, "prefix": 2}]})"));
  EXPECT_TRUE(sharing(R"({"batch": 2, "prompt": 3, "prefix": 2})"));
  EXPECT_FALSE(sharing(R"({"requests": [{"prompt": 3}]})"));
  EXPECT_FALSE(sharing(R"({"requests": [{"prompt": 3, "prefix": 2}], "prefix_sharing": false})"));
  EXPECT_THAT(problems_of(R"({"requests": [{"prompt": 3, "prefix": 4}]})"),
              ::testing::HasSubstr("workload.requests[0].prefix: 4 tokens of a prompt of 3; at most that many"));
  EXPECT_THAT(problems_of(R"({"tokens": [[1, 2, 3]], "requests": [{"prompt": 3, "prefix": 2}]})"),
              ::testing::HasSubstr("workload.tokens: given together with a prefix of requests"));
  EXPECT_THAT(problems_of(R"({"requests": [{"prompt": 3, "prefix": 2}], "steps": [[{"request": 0, "tokens": 3}]]})"),
              ::testing::HasSubstr("workload.steps: given together with prefix_sharing"));
}

TEST(ServingWorkload, MayHaveReplicasWithoutWorkRunPadding) {
  const Plan plan = parsed_workload(R"({"batch": 3, "prompt": 8, "output": 5, "idle": "pad"})");

  EXPECT_EQ(plan.workload.idle, Idle::pad);
  EXPECT_EQ(parse_plan(plan_json(plan), "again.json", ".").plan->workload.idle, Idle::pad);
  EXPECT_EQ(parsed_workload(R"({"batch": 3, "prompt": 8})").workload.idle, Idle::zero);
}

TEST(ServingWorkload, MayComeInSecondsWhichIsTimedAndNotRun) {
  const Plan plan = parsed_workload(R"({"requests": [{"prompt": 3}, {"prompt": 3, "arrival_s": 0.25}]})");

  EXPECT_EQ(plan.workload.serving->requests[1].arrival_s, 0.25);
  EXPECT_EQ(parse_plan(plan_json(plan), "again.json", ".").plan->workload.serving, plan.workload.serving);
  const Runnable runnable = make_runnable(plan);
  ASSERT_EQ(runnable.problems.size(), 1U);
  EXPECT_EQ(runnable.problems[0].field, "workload.requests[1].arrival_s");
  EXPECT_THAT(runnable.problems[0].message, ::testing::HasSubstr("seconds pass in `time` only"));
}

TEST(ServingWorkload, ComesInStepsOrInSecondsAndNeverBefore) {
  EXPECT_THAT(problems_of(R"({"requests": [{"prompt": 3, "arrival": 1, "arrival_s": 1}]})"),
              ::testing::HasSubstr("workload.requests[0].arrival_s: given together with \"arrival\""));
  EXPECT_THAT(problems_of(R"({"requests": [{"prompt": 3, "arrival_s": -1}]})"),
              ::testing::HasSubstr("workload.requests[0].arrival_s"));
  EXPECT_THAT(problems_of(R"({"requests": [{"prompt": 3, "arrival_s": "1s"}]})"),
              ::testing::HasSubstr("workload.requests[0].arrival_s"));
}

TEST(ServingWorkload, IsRefusedWithItsArithmetic) {
  const auto expect = [](const char* workload, const char* words) {
    EXPECT_THAT(problems_of(workload), ::testing::HasSubstr(words)) << workload;
  };
  expect(R"({"requests": []})", "workload.requests: is empty");
  expect(R"({"requests": [{"output": 2}]})", "workload.requests[0].prompt: is missing");
  expect(R"({"requests": [{"prompt": 0}]})", "workload.requests[0].prompt: 0 is out of range");
  expect(R"({"requests": [{"prompt": 4, "arrival": -1}]})", "workload.requests[0].arrival: -1 is out of range");
  expect(R"({"requests": [{"prompt": 4, "length": 1}]})", "workload.requests[0].length");
  expect(R"({"requests": [{"prompt": 4}], "batch": 2})", "workload.batch: given together with \"requests\"");
  expect(R"({"requests": [{"prompt": 40, "output": 20}]})", "prompt 40 + output 20 = 60 tokens, but the model's");
  expect(R"({"requests": [{"prompt": 20, "output": 3}], "kv_block_size": 4, "kv_blocks": 5})",
         "20 + output 3 - 1 = 22 tokens to keep, which take ceil(22 / kv_block_size 4) = 6 blocks; at least 6");
  expect(R"({"prompt": 4, "output": 2, "idle": "sleep"})", "workload.idle: \"sleep\"; \"zero\"");
  expect(R"({"prompt": 4, "max_tokens_per_step": 0})", "workload.max_tokens_per_step: 0 is out of range");
  expect(R"({"requests": [{"prompt": 4}], "steps": [[{"request": 0, "tokens": 3}]]})",
         "request 0 is given 3 tokens in all; its prompt's 4 are needed");
  expect(R"({"requests": [{"prompt": 4}], "steps": [[{"request": 1, "tokens": 3}]]})", "request 1 of 1; 0 to 0");
  expect(R"({"requests": [{"prompt": 4}], "steps": [[{"request": 0, "tokens": 2}, {"request": 0, "tokens": 2}]]})",
         "request 0 twice in a step");
  expect(R"({"requests": [{"prompt": 4}], "max_sequences": 2, "steps": [[{"request": 0, "tokens": 4}]]})", "keep one");
  expect(R"({"requests": [{"prompt": 4}, {"prompt": 4}, {"prompt": 4}], "kv_block_size": 4, "kv_blocks": 1,
             "steps": [[{"request": 0, "tokens": 2}, {"request": 1, "tokens": 4}], [{"request": 0, "tokens": 2}],
                       [{"request": 2, "tokens": 4}]]})",
         "the stated steps keep 2 blocks of 4 tokens at once");
  expect(R"({"requests": [{"prompt": 4, "arrival": 99999999}]})", "out of range");
}

// A look over the step's chunks for each of them would take a minute.
TEST(ServingWorkload, ValidatesAStepOfManyChunksAtOnce) {
  constexpr std::int64_t kRequests = 1 << 18;
  LoadedPlan loaded = parse_plan(served_text(R"({"requests": [{"prompt": 1}]})", "{}"), "plan.json", ".");
  ASSERT_TRUE(loaded.plan.has_value());
  Workload& workload = loaded.plan->workload;
  workload.serving->requests.assign(kRequests, workload.serving->requests.front());
  workload.serving->steps.assign(1, {});
  for (std::int64_t i = 0; i < kRequests; ++i) workload.serving->steps[0].push_back({.request = i, .tokens = 1});
  set_lengths(workload);
  const std::clock_t begin = std::clock();

  const std::vector<Problem> problems = validate(*loaded.plan);

  EXPECT_TRUE(problems.empty()) << problems.front().message;
  EXPECT_LT(std::clock() - begin, 5 * CLOCKS_PER_SEC);
}

std::string placement_problems(const std::string& experts) {
  LoadedPlan loaded =
      parse_plan(served_text("{}", R"({"ep": 2, "dp": 2, "experts": )" + experts + "}"), "plan.json", ".");
  if (loaded.plan) loaded.problems = validate(*loaded.plan);
  std::string text;
  for (const Problem& problem : loaded.problems) text += problem.field + ": " + problem.message + "\n";
  return text;
}

std::string share_problems(const std::string& parallel, const std::string& workload = R"({"prompt": 4})") {
  LoadedPlan loaded = parse_plan(served_text(workload, parallel), "plan.json", ".");
  if (loaded.plan) loaded.problems = validate(*loaded.plan);
  std::string text;
  for (const Problem& problem : loaded.problems) text += problem.field + ": " + problem.message + "\n";
  return text;
}

TEST(DecodeContextParallelism, IsReadAndWritten) {
  const LoadedPlan loaded =
      parse_plan(served_text(R"({"prompt": 4})", R"({"tensor_parallel_size": 4, "decode_context_parallel_size": 2,
                                                     "cp_kv_cache_interleave_size": 8})"),
                 "plan.json", ".");
  ASSERT_TRUE(loaded.plan.has_value());
  EXPECT_EQ(loaded.plan->parallel.dcp, 2);
  EXPECT_EQ(loaded.plan->parallel.dcp_interleave, 8);
  const LoadedPlan again = parse_plan(plan_json(*loaded.plan), "again.json", ".");
  ASSERT_TRUE(again.plan.has_value());
  EXPECT_EQ(again.plan->parallel, loaded.plan->parallel);
}

TEST(DecodeContextParallelism, IsRefusedWithItsArithmetic) {
  const auto expect = [](const char* parallel, const char* words, const char* workload = R"({"prompt": 4})") {
    EXPECT_THAT(share_problems(parallel, workload), ::testing::HasSubstr(words)) << parallel;
  };
  EXPECT_EQ(share_problems(R"({"tp": 4, "dcp": 2})"), "");
  expect(R"({"tp": 2, "dcp": 2})",
         "parallel.dcp: 2 ranks share out what is cached of a key-value head, and tp 2 / 2 heads = 1 rank holds the "
         "same one; 1 would do");
  expect(R"({"tp": 4, "dcp": 4})", "tp 4 / 2 heads = 2 ranks hold the same one; 2 would do");
  expect(R"({"tp": 4, "cp": 2, "dcp": 2})", "parallel.dcp: 2 beside cp 2");
  expect(R"({"tp": 4, "dcp": 2, "dcp_interleave": 3})",
         "parallel.dcp_interleave: kv_block_size 16 / dcp_interleave 3 = 5 remainder 1; 2 or 4 would do",
         R"({"prompt": 4, "output": 2})");
  expect(R"({"tp": 4, "dcp": 2})", "take ceil(20 / (kv_block_size 4 * dcp 2)) = 3 blocks",
         R"({"prompt": 20, "kv_block_size": 4, "kv_blocks": 2})");
  expect(R"({"tp": 4, "dcp": 0})", "parallel.dcp: 0 is out of range");
}

TEST(ExpertPlacement, IsReadAndWritten) {
  for (const char* experts :
       {R"({"redundant": 2, "map": "round_robin"})", R"({"map": "balanced", "replica": "nearest"})",
        R"({"redundant": 1, "map": [[3, 2, 1, 0, 3]]})"}) {
    EXPECT_EQ(placement_problems(experts), "");
    const LoadedPlan loaded = parse_plan(
        served_text("{}", R"({"ep": 2, "dp": 2, "experts": )" + std::string(experts) + "}"), "plan.json", ".");
    ASSERT_TRUE(loaded.plan.has_value());
    EXPECT_FALSE(loaded.plan->parallel.experts == ExpertPlacement{});
    const LoadedPlan again = parse_plan(plan_json(*loaded.plan), "again.json", ".");
    ASSERT_TRUE(again.plan.has_value());
    EXPECT_EQ(again.plan->parallel.experts, loaded.plan->parallel.experts);
  }
}

TEST(ExpertPlacement, IsRefusedWithItsArithmetic) {
  const auto expect = [](const char* experts, const char* words) {
    EXPECT_THAT(placement_problems(experts), ::testing::HasSubstr(words)) << experts;
  };
  expect(R"({"redundant": -1})", "parallel.experts.redundant: -1 is out of range");
  expect(R"({"map": "best"})", R"("linear", "round_robin", "balanced" or an array)");
  expect(R"({"replica": "first"})", R"("round_robin" or "nearest" is needed)");
  expect(R"({"map": [[0, 1, 2]]})", "3 physical experts; 4 experts + 0 redundant = 4 are needed");
  expect(R"({"map": [[0, 1, 2, 4]]})", "expert 4 of 4; 0 to 3 is needed");
  expect(R"({"map": [[0, 1, 2, 2]]})", "expert 3 is nowhere");
  expect(R"({"map": [[0, 1, 2, 3], [0, 1, 2, 3]]})", "2 rows for 4 layers");
  expect(R"({"map": [3]})", "parallel.experts.map[0]: 3 where an array");
}

}  // namespace
}  // namespace shardproof
