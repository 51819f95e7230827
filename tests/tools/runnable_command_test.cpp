// Plans that are valid and not run: what each subcommand says of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/tools/command.h"

namespace shardproof {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::shardproof;
using testing::temporary_file;

/// A model whose sequences are longer than what implementations agree on.
constexpr const char* kLong = R"("model_type": "phimoe", "rope_scaling": {"type": "longrope", "short_factor": [1.0],
    "long_factor": [2.0], "short_mscale": 1.0, "long_mscale": 1.0, "original_max_position_embeddings": 4},
    "max_position_embeddings": 64)";
constexpr const char* kFactors = "a sequence of 6 tokens exceeds original_max_position_embeddings = 4";
constexpr const char* kContext = "parallel.cp: cp = 2: requests are served with cp = 1 only";

std::string plan_of(const std::string& model_keys, const std::string& parallel,
                    const std::string& workload = R"({"batch": 4, "sequence": 6})") {
  return temporary_file("plan.json", R"({
  "model": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 32,
            )" + model_keys +
                                         R"(},
  "parallel": )" + parallel + R"(,
  "workload": )" + workload + "}");
}

TEST(RunnableCommand, AModelThatIsNotComputedWholeGetsNoVerdict) {
  const std::string plan = plan_of(kLong, R"({"tp": 2, "ep": 2})");

  for (const std::string command : {"verify ", "verify --format exact ", "mutate "}) {
    const CommandResult result = shardproof(command + plan);

    EXPECT_EQ(result.exit_code, 2) << command << result.out;
    EXPECT_THAT(result.err, HasSubstr(kFactors)) << command;
  }
}

TEST(RunnableCommand, AModelThatIsNotComputedWholeIsCheckedAndDrawnWithANote) {
  const std::string plan = plan_of(kLong, R"({"tp": 2, "ep": 2})");

  const CommandResult check = shardproof("check " + plan);
  const CommandResult graph = shardproof("graph " + plan);

  EXPECT_EQ(check.exit_code, 0) << check.err;
  EXPECT_THAT(check.err, HasSubstr(kFactors));
  EXPECT_EQ(graph.exit_code, 0) << graph.err;
  EXPECT_THAT(graph.err, HasSubstr(kFactors));
  EXPECT_EQ(nlohmann::json::parse(graph.out).count("nodes"), 1U);
}

TEST(RunnableCommand, RequestsAreRefusedWithContextParallelismInOneWording) {
  const std::string plan =
      plan_of(R"("model_type": "mixtral")", R"({"cp": 2, "ep": 2})", R"({"requests": [{"prompt": 6, "output": 2}]})");

  for (const std::string command : {"verify ", "mutate ", "graph "}) {
    const CommandResult result = shardproof(command + plan);

    EXPECT_EQ(result.exit_code, 2) << command << result.out;
    EXPECT_THAT(result.err, HasSubstr(kContext)) << command;
  }
}

}  // namespace
}  // namespace shardproof
