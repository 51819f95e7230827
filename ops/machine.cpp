// Compiled with contraction on: the peak is that of fused multiply-adds where the instruction set has them.
#include "ops/machine.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <vector>

#include "ops/internal/simd.h"

namespace shardproof::ops {

namespace {

using simd::Vec;

/// The compiler must have the value, and may know nothing of it afterwards.
template <class T>
void keep(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

/// The mean rate of some runs of f, each of which does `amount`.
template <class F>
double mean_rate(double amount, int runs, F f) {
  const double begin = thread_seconds();
  for (int run = 0; run < runs; ++run) f();
  return amount * runs / (thread_seconds() - begin);
}

/// Twice 128 MiB that are touched once and kept.
std::vector<float>& many_floats(int which) {
  static std::vector<float> floats[2] = {std::vector<float>(std::size_t{32} << 20, 1.0F),
                                         std::vector<float>(std::size_t{32} << 20, 1.0F)};
  return floats[which];
}

double read_rate(const std::vector<float>& data, int passes) {
  constexpr std::size_t kStep = static_cast<std::size_t>(simd::kLanes<float>);
  return mean_rate(static_cast<double>(data.size() * sizeof(float)), passes, [&] {
    Vec<float> sum[8] = {};
    for (std::size_t i = 0; i + 8 * kStep <= data.size(); i += 8 * kStep) {
      SHARDPROOF_UNROLL
      for (std::size_t j = 0; j < 8; ++j) sum[j] += simd::load<float>(&data[i + j * kStep]);
    }
    Vec<float> total = sum[0];
    for (std::size_t j = 1; j < 8; ++j) total += sum[j];
    keep(total);
  });
}

double copy_rate(const std::vector<float>& from, std::vector<float>& to, int passes) {
  constexpr std::size_t kStep = static_cast<std::size_t>(simd::kLanes<float>);
  return mean_rate(2 * static_cast<double>(from.size() * sizeof(float)), passes, [&] {
    // Ordinary stores, as the ops make them: memcpy may bypass the cache, which only pays where nobody reads on.
    for (std::size_t i = 0; i + kStep <= from.size(); i += kStep) {
      simd::store<float>(&to[i], simd::load<float>(&from[i]));
    }
    asm volatile("" : : : "memory");
  });
}

int passes_of(std::size_t bytes) {
  return static_cast<int>(std::max<std::size_t>(1, (std::size_t{64} << 20) / bytes));
}

}  // namespace

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class T>
double peak_flops() {
  constexpr int kRuns = 10, kRounds = 400000, kChains = 10;
  T seed = 1, factor = static_cast<T>(0.999);
  keep(seed);
  keep(factor);
  const double flops = 2.0 * kRounds * kChains * static_cast<double>(simd::kLanes<T>);
  return mean_rate(flops, kRuns, [&] {
    const Vec<T> a = simd::broadcast<T>(factor);
    Vec<T> sum[kChains];
    for (auto& chain : sum) {  // no two chains alike, or they would be computed once
      chain = simd::broadcast<T>(seed);
      seed += factor;
      keep(seed);
    }
    for (int round = 0; round < kRounds; ++round) {
      SHARDPROOF_UNROLL
      for (auto& chain : sum) chain = chain * a + a;
    }
    Vec<T> total = sum[0];
    for (int i = 1; i < kChains; ++i) total += sum[i];
    T result = total[0];
    for (int lane = 1; lane < static_cast<int>(simd::kLanes<T>); ++lane) result += total[lane];
    keep(result);
  });
}

template double peak_flops<float>();
template double peak_flops<double>();

double read_bandwidth(std::size_t bytes) {
  return read_rate(std::vector<float>(bytes / sizeof(float), 1.0F), passes_of(bytes));
}

double copy_bandwidth(std::size_t bytes) {
  const std::vector<float> from(bytes / sizeof(float), 1.0F);
  std::vector<float> to(from.size());
  return copy_rate(from, to, passes_of(bytes));
}

// The first pass also writes back what others left in the caches: it does not count.
double memory_read_bandwidth() {
  read_rate(many_floats(0), 1);
  return read_rate(many_floats(0), 3);
}

double memory_copy_bandwidth() {
  copy_rate(many_floats(0), many_floats(1), 1);
  return copy_rate(many_floats(0), many_floats(1), 3);
}

}  // namespace shardproof::ops
