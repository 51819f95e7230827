// What a dry run costs: the program of a plan at full size, on shapes. "of_limit" is the median over the time that a
// reader of `check` is asked to wait: 0.5 s for 128 ranks, 15 s for 4,096, both of 61 layers with 256 experts.
//
//   build/release/bench/dry_run_bench
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "emu/run/dry_run.h"
#include "emu/run/routing.h"

namespace {

using namespace shardproof;

Plan plan_of(const Parallel& parallel, std::int64_t sequences, std::int64_t microbatches) {
  const LayerSpec layer{.attention = {.heads = 128, .kv_heads = 128, .head_dim = 128},
                        .feed_forward = {.intermediate_size = 2048, .num_experts = 256, .top_k = 8}};
  Plan plan;
  plan.model = {.hidden_size = 7168, .layers = {61, layer}, .vocab_size = 129280};
  plan.parallel = parallel;
  plan.workload.microbatches = microbatches;
  // No two replicas alike, which is the worst case: ranks that are alike share their records.
  for (std::int64_t s = 0; s < sequences; ++s) plan.workload.lengths.push_back(2048 + s * 37 % 513);
  return plan;
}

void dry(benchmark::State& state, const Plan& plan, double limit_s) {
  const StatedRouting routing = StatedRouting::of(plan);
  std::vector<double> seconds;
  std::size_t distinct = 0;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    const DryTraces traces = dry_run(plan, ops::Format::bf16, DryPass::prefill, routing);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    state.SetIterationTime(seconds.back());
    distinct = traces.distinct;
  }
  std::ranges::nth_element(seconds, seconds.begin() + std::ssize(seconds) / 2);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  state.counters["ranks"] = plan.world();
  state.counters["lists"] = static_cast<double>(distinct);
  state.counters["of_limit"] = seconds[seconds.size() / 2] / limit_s;
  state.counters["peak_GB"] = static_cast<double>(usage.ru_maxrss) * 1024 / 1e9;
}

void ranks_128(benchmark::State& state) {
  dry(state, plan_of({.tp = 4, .dp = 16, .pp = 2, .ep = 64, .sp = true}, 64, 4), 0.5);
}
void ranks_4096(benchmark::State& state) {
  dry(state, plan_of({.tp = 8, .dp = 64, .pp = 8, .ep = 64, .edp = 8, .sp = true}, 1024, 8), 15);
}

BENCHMARK(ranks_128)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(9);
BENCHMARK(ranks_4096)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace

BENCHMARK_MAIN();
