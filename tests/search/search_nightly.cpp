// Searches of larger models held to ones that pass nothing over.
#include <gtest/gtest.h>

#include "tests/search/exhaustive.h"

namespace shardproof::testing {
namespace {

TEST(SearchNightly, FindsTheBestOfAllOnSixteenGpus) {
  expect_best_of_all({.model = "qwen3-235b-a22b", .gpus = 16, .preset = "h200", .memory_gb = 141});
  expect_best_of_all({.model = "deepseek-v3", .gpus = 16, .preset = "h200", .memory_gb = 141});
}

TEST(SearchNightly, FindsTheBestOfAllWhateverMemoryThereIs) {
  for (const double memory_gb : {18, 20, 22, 24, 28, 40}) {
    expect_best_of_all(
        {.model = "qwen3-30b-a3b", .memory_gb = memory_gb, .batch = {.requests = 16, .prompt = 32768, .output = 128}});
  }
}

TEST(SearchNightly, FindsTheBestOfAllForShortAndLongRequests) {
  for (const ServedBatch& batch :
       {ServedBatch{8, 128, 256}, ServedBatch{64, 128, 256}, ServedBatch{8, 16384, 256}, ServedBatch{64, 16384, 256}}) {
    expect_best_of_all({.model = "gpt-oss-120b", .batch = batch});
    expect_best_of_all({.model = "glm-4.5", .gpus = 16, .preset = "h200", .memory_gb = 141, .batch = batch});
  }
}

}  // namespace
}  // namespace shardproof::testing
