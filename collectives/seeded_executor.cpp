#include "collectives/seeded_executor.h"

namespace shardproof {

// splitmix64 (Steele, Lea and Flood, 2014): the same on every machine.
std::uint64_t SeededExecutor::next() {
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void SeededExecutor::post(Work work) {
  for (std::size_t i = 0; i < work.count; ++i) ready_.push_back({work.run, work.context, i});
}

void SeededExecutor::run() {
  while (!ready_.empty()) {
    const std::size_t chosen = static_cast<std::size_t>(next() % ready_.size());
    const Ready call = ready_[chosen];
    ready_[chosen] = ready_.back();
    ready_.pop_back();
    call.run(call.context, call.index);
  }
}

}  // namespace shardproof
