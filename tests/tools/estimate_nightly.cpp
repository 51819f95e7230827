// What a run is said to need, held to what it takes: never below the peak, and at most half as much again and what the
// process itself takes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/load.h"
#include "emu/plan/scale.h"
#include "tests/tools/place.h"
#include "tests/tools/running_command.h"

namespace shardproof {
namespace {

/// Beyond half as much again: a plan of a few ranks takes less than the process that runs it.
constexpr double kFloor = 16e6;
/// The largest peak of so many is held to the estimate.
constexpr int kRuns = 3;

struct Sizes {
  const char* name;
  int layers = 4, experts = 4, top_k = 2, hidden = 64, heads = 4, head_dim = 16, intermediate = 64, vocabulary = 128;
  const char* parallel = "{}";
  int world = 1;
  const char* workload = R"({"batch": 8, "sequence": 16})";
};

std::string plan_text(const Sizes& sizes) {
  return fmt::format(
      R"({{"name": "{}", "model": {{"model_type": "mixtral", "hidden_size": {}, "num_hidden_layers": {},
         "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {}, "intermediate_size": {},
         "num_local_experts": {}, "num_experts_per_tok": {}, "vocab_size": {}, "torch_dtype": "bfloat16"}},
         "hardware": {{"gpus": {}, "gpus_per_node": 8, "memory_gb": 64, "tflops": 400}},
         "parallel": {}, "workload": {}}})",
      sizes.name, sizes.hidden, sizes.layers, sizes.heads, sizes.heads, sizes.head_dim, sizes.intermediate,
      sizes.experts, sizes.top_k, sizes.vocabulary, sizes.world, sizes.parallel, sizes.workload);
}

const std::vector<Sizes> kSizes = {
    {.name = "one"},
    {.name = "tp2", .parallel = R"({"tp": 2, "etp": 2})", .world = 2},
    {.name = "layers256", .layers = 256},
    {.name = "layers2048", .layers = 2048},
    {.name = "pp256", .layers = 256, .parallel = R"({"pp": 256})", .world = 256},
    {.name = "pp64_microbatches8",
     .layers = 64,
     .parallel = R"({"pp": 64})",
     .world = 64,
     .workload = R"({"batch": 64, "sequence": 16, "microbatches": 8})"},
    {.name = "dp128",
     .parallel = R"({"dp": 128, "ep": 4})",
     .world = 128,
     .workload = R"({"batch": 128, "sequence": 16})"},
    {.name = "dp8192",
     .parallel = R"({"dp": 8192, "ep": 4})",
     .world = 8192,
     .workload = R"({"batch": 8192, "sequence": 1})"},
    {.name = "wide",
     .experts = 8,
     .hidden = 1024,
     .heads = 16,
     .head_dim = 64,
     .intermediate = 4096,
     .vocabulary = 32000,
     .parallel = R"({"tp": 2, "ep": 2, "etp": 1})",
     .world = 2,
     .workload = R"({"batch": 4, "sequence": 64})"},
    {.name = "wide_vocabulary",
     .layers = 1,
     .experts = 8,
     .hidden = 4096,
     .heads = 32,
     .head_dim = 128,
     .intermediate = 2048,
     .vocabulary = 32000,
     .parallel = R"({"tp": 2, "dp": 2, "ep": 4})",
     .world = 4,
     .workload = R"({"batch": 4, "sequence": 16})"},
    {.name = "full_width",
     .layers = 1,
     .experts = 8,
     .hidden = 4096,
     .heads = 32,
     .head_dim = 128,
     .intermediate = 14336,
     .vocabulary = 32000,
     .parallel = R"({"tp": 2, "dp": 2, "ep": 4})",
     .world = 4,
     .workload = R"({"batch": 4, "sequence": 16})"},
    {.name = "full_width_sliced",
     .layers = 1,
     .experts = 4,
     .hidden = 4096,
     .heads = 32,
     .head_dim = 128,
     .intermediate = 14336,
     .vocabulary = 128000,
     .parallel = R"({"tp": 4, "ep": 2, "etp": 2})",
     .world = 4,
     .workload = R"({"batch": 4, "sequence": 16})"},
    {.name = "long", .parallel = R"({"tp": 2, "etp": 2})", .world = 2, .workload = R"({"batch": 1, "sequence": 2048})"},
    {.name = "many",
     .parallel = R"({"tp": 2, "dp": 2, "etp": 2, "ep": 2})",
     .world = 4,
     .workload = R"({"batch": 256, "sequence": 64})"},
    {.name = "cp4",
     .parallel = R"({"cp": 4, "ep": 4, "etp": 1})",
     .world = 4,
     .workload = R"({"batch": 4, "sequence": 256})"},
    {.name = "experts256",
     .experts = 256,
     .top_k = 8,
     .parallel = R"({"dp": 4, "ep": 4})",
     .world = 4,
     .workload = R"({"batch": 16, "sequence": 64})"},
};

const char* const kShipped[] = {"cp4_tp2_ep4",
                                "ep64_tp2",
                                "tp4_ep4_pp4",
                                "ep16_tp2_pp4",
                                "tp2_ep4_pp2_dp2",
                                "ep4_tp2_pp2_sp",
                                "models/mixtral-8x7b",
                                "serving/ep4_tp2_pp2_sp",
                                "serving/ep64_tp2_decode",
                                "serving/deepseek-v3-decode-ep144"};

struct Measured {
  std::string name;
  std::string path;
  bool full = false;
  ops::Format format{};
  double peak = 0;
};

void measure(Measured& run) {
  std::vector<std::string> words{"verify", run.path, "--format", std::string(ops::to_string(run.format))};
  if (run.full) words.insert(words.end(), {"--scale", "full"});
  // How far the judge is behind the run is the scheduler's choice, and moves the peak by some percent.
  for (int i = 0; i < kRuns; ++i) {
    testing::RunningCommand command(words, "", "");
    const int status = command.wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << run.name;
    run.peak = std::max(run.peak, static_cast<double>(command.most_bytes()));
  }
}

double estimate(const Measured& run) {
  const LoadedPlan loaded = load_plan(run.path);
  ScaleOptions options;
  if (run.full) options.mode = ScaleOptions::Mode::full;
  return estimated_bytes(scaled(loaded.plan.value(), options), run.format);
}

class EstimatedBytes : public ::testing::TestWithParam<ops::Format> {};

TEST_P(EstimatedBytes, AreThePeakOfARunAndAtMostHalfAsMuchAgain) {
  const testing::Folder folder;
  std::vector<Measured> runs;
  for (const Sizes& sizes : kSizes) {
    const std::string name = sizes.name;
    runs.push_back({name, folder.write(name + ".json", plan_text(sizes)), true, GetParam()});
  }
  for (const std::string name : kShipped) {
    runs.push_back({name, std::string(SHARDPROOF_SOURCE_DIR) + "/plans/" + name + ".json", false, GetParam()});
  }
  // First all of these: a process that is started counts what the one had that started it.
  for (Measured& run : runs) measure(run);

  for (const Measured& run : runs) {
    const double said = estimate(run);
    fmt::print("{:36} {:5} said {:7.1f} MB, took {:7.1f} MB, {:.2f}\n", run.name, ops::to_string(run.format),
               said / 1e6, run.peak / 1e6, said / run.peak);
    EXPECT_GE(said, run.peak) << run.name;
    EXPECT_LE(said, 1.5 * run.peak + kFloor) << run.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, EstimatedBytes,
                         ::testing::Values(ops::Format::exact, ops::Format::bf16, ops::Format::fp64),
                         [](const auto& format) { return std::string(ops::to_string(format.param)); });

}  // namespace
}  // namespace shardproof
