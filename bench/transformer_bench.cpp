// What emulation costs: the sharded run of a model over the unsharded run of the same model, through the same ops, on
// the same threads. Both run without taps. "overhead" is the ratio of the medians.
//
//   build/release/bench/transformer_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "collectives/tbb_executor.h"
#include "emu/plan/scale.h"
#include "emu/run/cluster.h"
#include "emu/run/transformer.h"

namespace {

using namespace shardproof;

/// Wide enough that arithmetic dominates, as it does in the models that plans are made for.
ModelConfig bench_model(int layers, int experts) {
  const LayerSpec layer{.attention = {.heads = 16, .kv_heads = 16, .head_dim = 32},
                        .feed_forward = {.intermediate_size = 1024, .num_experts = experts, .top_k = 2}};
  return {.hidden_size = 512, .layers = {layers, layer}, .vocab_size = 2048};
}

/// A model with its weights, ready to run on one plan.
class Prepared {
 public:
  Prepared(const ModelConfig& model, const Parallel& parallel, const Workload& workload, const Batch& batch,
           WeightStore<float>& store)
      : cluster_(parallel),
        program_{.model = model,
                 .batch = batch,
                 .weights = store,
                 .format = ops::Format::fp32,
                 .deployment = deploy(model, parallel, workload)} {}

  double seconds(TbbExecutor& executor) {
    const auto start = std::chrono::steady_clock::now();
    cluster_.run(executor, [&](Rank& rank) { return run_transformer<float>(rank, program_); });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  Cluster cluster_;
  TransformerProgram<float> program_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void overhead(benchmark::State& state, const ModelConfig& model, const Parallel& parallel, const Workload& workload) {
  const GeneratedWeights source(1);
  WeightStore<float> whole_store(source, ops::Format::fp32);
  WeightStore<float> shard_store(source, ops::Format::fp32);
  const Batch batch(workload, model.vocab_size);
  TbbExecutor executor(1);  // one thread for both: one rank alone could not use more
  Prepared unsharded(model, Parallel{}, workload, batch, whole_store);
  Prepared sharded(model, parallel, workload, batch, shard_store);
  // The first run of each makes the weights.
  unsharded.seconds(executor);
  sharded.seconds(executor);

  std::vector<double> unsharded_seconds;
  std::vector<double> sharded_seconds;
  for (auto _ : state) {
    unsharded_seconds.push_back(unsharded.seconds(executor));
    sharded_seconds.push_back(sharded.seconds(executor));
    state.SetIterationTime(sharded_seconds.back());
  }
  state.counters["ranks"] = parallel.world();
  state.counters["unsharded_s"] = median(unsharded_seconds);
  state.counters["sharded_s"] = median(sharded_seconds);
  state.counters["overhead"] = median(sharded_seconds) / median(unsharded_seconds);
}

Workload workload_of(std::int64_t sequences, std::int64_t length, std::int64_t microbatches) {
  return {.lengths = std::vector<std::int64_t>(static_cast<std::size_t>(sequences), length),
          .microbatches = microbatches};
}

void ranks_16(benchmark::State& state) {
  overhead(state, bench_model(4, 8), {.tp = 2, .dp = 4, .pp = 2, .ep = 8, .sp = true}, workload_of(8, 256, 1));
}
void ranks_128(benchmark::State& state) {
  overhead(state, bench_model(4, 16), {.tp = 2, .dp = 16, .pp = 4, .ep = 16, .etp = 2, .sp = true},
           workload_of(32, 128, 1));
}
/// Not a ratio: that a thousand ranks run, and how long they take.
void ranks_1024(benchmark::State& state) {
  const ModelConfig model = bench_model(4, 64);
  const Parallel parallel{.tp = 2, .dp = 128, .pp = 4, .ep = 64, .etp = 2, .edp = 2, .sp = true};
  const GeneratedWeights source(1);
  WeightStore<float> store(source, ops::Format::fp32);
  const Workload workload = workload_of(128, 32, 1);
  const Batch batch(workload, model.vocab_size);
  TbbExecutor executor;
  Prepared run(model, parallel, workload, batch, store);
  run.seconds(executor);
  for (auto _ : state) state.SetIterationTime(run.seconds(executor));
  state.counters["ranks"] = parallel.world();
}

/// A step of decode on 128 ranks, a token a replica, at the size that is verified (--scale auto): what 32 steps more
/// take, by 32.
void decode_step_128(benchmark::State& state) {
  const LayerSpec layer{.attention = {.heads = 16, .kv_heads = 16, .head_dim = 64},
                        .feed_forward = {.intermediate_size = 4096, .num_experts = 64, .top_k = 2}};
  Plan plan{.name = "ep64_tp2",
            .model = {.hidden_size = 1024, .layers = {16, layer}, .vocab_size = 32000},
            .parallel = {.tp = 2, .dp = 64, .ep = 64, .etp = 2},
            .workload = {.lengths = std::vector<std::int64_t>(64, 8)}};
  plan = scaled(plan, {});
  const auto served = [&](std::int64_t output) {
    Workload workload = plan.workload;
    workload.serving = Serving{.requests = std::vector(64, Request{.prompt = 8, .output = output}), .steps = {}};
    set_lengths(workload);
    return workload;
  };
  constexpr std::int64_t kSteps = 32;
  const Workload short_workload = served(4), long_workload = served(4 + kSteps);
  const GeneratedWeights source(1);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch short_batch(short_workload, plan.model.vocab_size), long_batch(long_workload, plan.model.vocab_size);
  TbbExecutor executor;
  Prepared few(plan.model, plan.parallel, short_workload, short_batch, store);
  Prepared many(plan.model, plan.parallel, long_workload, long_batch, store);
  few.seconds(executor);
  many.seconds(executor);
  for (auto _ : state) {
    const double seconds = many.seconds(executor) - few.seconds(executor);
    state.SetIterationTime(std::max(seconds, 0.0) / static_cast<double>(kSteps));
  }
  state.counters["ranks"] = plan.world();
}

/// The embedded plan's forward at the size that is verified (--scale auto), on 16 ranks: what
/// bench/peers/transformer_jax.py has JAX do on as many devices.
void steady_state_16(benchmark::State& state) {
  const LayerSpec layer{.attention = {.heads = 64, .kv_heads = 64, .head_dim = 128},
                        .feed_forward = {.intermediate_size = 18432, .num_experts = 4, .top_k = 2}};
  Plan plan{.name = "tp4_ep4_pp4",
            .model = {.hidden_size = 8192, .layers = {8, layer}, .vocab_size = 32000},
            .parallel = {.tp = 4, .pp = 4, .ep = 4},
            .workload = workload_of(8, 256, 8)};
  plan = scaled(plan, {});
  const GeneratedWeights source(1);
  WeightStore<float> store(source, ops::Format::fp32);
  const Batch batch(plan.workload, plan.model.vocab_size);
  TbbExecutor executor;
  Prepared run(plan.model, plan.parallel, plan.workload, batch, store);
  run.seconds(executor);
  for (auto _ : state) state.SetIterationTime(run.seconds(executor));
  state.counters["ranks"] = plan.world();
}

BENCHMARK(steady_state_16)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(decode_step_128)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(5);
BENCHMARK(ranks_16)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(9);
BENCHMARK(ranks_128)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(9);
BENCHMARK(ranks_1024)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace

BENCHMARK_MAIN();
