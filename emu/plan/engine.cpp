#include "emu/plan/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace shardproof {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

std::int64_t limit_of(std::int64_t stated) {
  return stated > 0 ? stated : kNoLimit;
}

}  // namespace

Engine::Engine(const Serving& serving, int dcp, Range sequences)
    : serving_(serving),
      dcp_(dcp),
      free_blocks_(limit_of(serving.kv_blocks)),
      most_running_(limit_of(serving.max_sequences)) {
  for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) waiting_.push_back(s);
  std::ranges::stable_sort(waiting_, {},
                           [&](std::int64_t s) { return std::pair(request(s).arrival, request(s).arrival_s); });
}

bool Engine::has_come(std::int64_t sequence, const Moment& now) const {
  return request(sequence).arrival <= now.step && request(sequence).arrival_s <= now.seconds;
}

bool Engine::has_work(const Moment& now) const {
  return !running_.empty() || std::ranges::any_of(waiting_, [&](std::int64_t s) { return has_come(s, now); });
}

Moment Engine::next_arrival(const Moment& now) const {
  const auto later = [&](std::int64_t s) {
    return Moment{std::max(request(s).arrival, now.step), std::max(request(s).arrival_s, now.seconds)};
  };
  Moment next{std::numeric_limits<std::int64_t>::max(), std::numeric_limits<double>::infinity()};
  for (const std::int64_t s : waiting_) {
    const Moment come = later(s);
    if (std::pair(come.step, come.seconds) < std::pair(next.step, next.seconds)) next = come;
  }
  return next;
}

std::vector<Chunk> Engine::step(const Moment& now) {
  std::int64_t room = limit_of(serving_.max_tokens_per_step);
  std::vector<Chunk> chunks;
  const auto run = [&](Running& running) {
    const Request& of = request(running.sequence);
    const std::int64_t next = running.done < of.prompt ? of.prompt - running.done : 1;
    const std::int64_t count = std::min(next, room);
    if (count == 0) return;
    chunks.push_back({running.sequence, running.done, count});
    running.done += count;
    room -= count;
  };
  for (Running& running : running_) run(running);
  while (room > 0 && std::ssize(running_) < most_running_) {
    const auto next = std::ranges::find_if(waiting_, [&](std::int64_t s) { return has_come(s, now); });
    if (next == waiting_.end()) break;
    const std::int64_t sequence = *next, blocks = serving_.blocks_of(request(sequence).tokens(), dcp_);
    if (blocks > free_blocks_) break;
    if (free_blocks_ != kNoLimit) free_blocks_ -= blocks;
    waiting_.erase(next);
    run(running_.emplace_back(Running{sequence, 0}));
  }
  leave();
  std::ranges::sort(chunks, {}, &Chunk::sequence);
  return chunks;
}

void Engine::leave() {
  std::erase_if(running_, [&](const Running& running) {
    if (running.done < request(running.sequence).tokens()) return false;
    if (free_blocks_ != kNoLimit) free_blocks_ += serving_.blocks_of(request(running.sequence).tokens(), dcp_);
    return true;
  });
}

}  // namespace shardproof
