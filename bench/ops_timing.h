// How an op is timed, and its rate beside what the machine was measured to do just before and just after.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>

#include "ops/cost.h"
#include "ops/machine.h"
#include "ops/matrix.h"

namespace shardproof::bench {

/// gate.py compares times only, in many short runs: there the machine's limits would take most of the time.
inline bool wants_limits() {
  const char* setting = std::getenv("SHARDPROOF_BENCH_LIMITS");
  return setting == nullptr || std::string(setting) != "0";
}

template <class Op>
void time_only(benchmark::State& state, Op op) {
  op();
  for (auto _ : state) op();
}

template <class T, class Op>
void time_flops(benchmark::State& state, const ops::Cost& cost, Op op) {
  if (!wants_limits()) return time_only(state, op);
  const ops::Beside read(ops::memory_read_bandwidth), peak(ops::peak_flops<T>);
  op();  // not timed: measuring the limits emptied the caches
  for (auto _ : state) op();
  const auto times = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(1e-9 * cost.flops * times, benchmark::Counter::kIsRate);
  state.counters["peak_share"] = benchmark::Counter(cost.flops * times / peak.rate(), benchmark::Counter::kIsRate);
  state.counters["read_share"] = benchmark::Counter(cost.bytes * times / read.rate(), benchmark::Counter::kIsRate);
}

template <class Op>
void time_bytes(benchmark::State& state, const ops::Cost& cost, Op op) {
  if (!wants_limits()) return time_only(state, op);
  const ops::Beside copy(ops::memory_copy_bandwidth);
  op();  // not timed: measuring the limits emptied the caches
  for (auto _ : state) op();
  const auto times = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(1e-9 * cost.bytes * times, benchmark::Counter::kIsRate);
  state.counters["copy_share"] = benchmark::Counter(cost.bytes * times / copy.rate(), benchmark::Counter::kIsRate);
}

/// "op/m:1/n:2": peers and results of other builds are found by it.
inline std::string label(const std::string& op, std::initializer_list<std::pair<const char*, ops::Index>> parameters) {
  std::string name = op;
  for (const auto& [key, value] : parameters) name += std::string("/") + key + ":" + std::to_string(value);
  return name;
}

}  // namespace shardproof::bench
