#include "emu/plan/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "emu/plan/prefix.h"

namespace shardproof {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

std::int64_t limit_of(std::int64_t stated) {
  return stated > 0 ? stated : kNoLimit;
}

}  // namespace

Engine::Engine(const Workload& workload, int dcp, Range sequences)
    : workload_(workload),
      dcp_(dcp),
      most_running_(limit_of(serving().max_sequences)),
      blocks_(serving().tokens_of_block(dcp)) {
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

Engine::Hit Engine::in_cache(std::int64_t sequence) const {
  Hit hit;
  if (!serving().prefix_sharing) return hit;
  for (const Running& other : running_) {
    const std::int64_t there = other.sequence < sequence ? other.done : other.before;
    std::int64_t tokens =
        std::min({common_prefix(workload_, sequence, other.sequence), there, request(sequence).prompt - 1});
    tokens -= tokens % blocks_.block_size();
    const bool first = tokens == hit.tokens && other.sequence < hit.sequence;
    if (tokens > 0 && (tokens > hit.tokens || first)) hit = {other.sequence, tokens};
  }
  return hit;
}

bool Engine::fits(std::int64_t sequence, const Hit& hit) const {
  const std::int64_t more =
      serving().blocks_of(request(sequence).tokens(), dcp_) - serving().blocks_of(hit.tokens, dcp_);
  return blocks_.used_blocks() + more <= limit_of(serving().kv_blocks);
}

std::vector<Chunk> Engine::step(const Moment& now) {
  std::int64_t room = limit_of(serving().max_tokens_per_step);
  std::vector<Chunk> chunks;
  const auto run = [&](Running& running, std::int64_t prefix_of) {
    const Request& of = request(running.sequence);
    const std::int64_t next = running.done < of.prompt ? of.prompt - running.done : 1;
    const std::int64_t count = std::min(next, room);
    running.before = running.done;
    if (count == 0) return;
    chunks.push_back({running.sequence, running.done, count, prefix_of});
    running.done += count;
    room -= count;
  };
  for (Running& running : running_) run(running, -1);
  while (room > 0 && std::ssize(running_) < most_running_) {
    const auto next = std::ranges::find_if(waiting_, [&](std::int64_t s) { return has_come(s, now); });
    if (next == waiting_.end()) break;
    const std::int64_t sequence = *next;
    const Hit hit = in_cache(sequence);
    if (!fits(sequence, hit)) break;
    if (hit.tokens > 0) blocks_.share(sequence, hit.sequence, hit.tokens);
    blocks_.extend(sequence, request(sequence).tokens());
    waiting_.erase(next);
    run(running_.emplace_back(Running{sequence, hit.tokens, hit.tokens}), hit.sequence);
  }
  leave();
  std::ranges::sort(chunks, {}, &Chunk::sequence);
  return chunks;
}

void Engine::leave() {
  std::erase_if(running_, [&](const Running& running) {
    if (running.done < request(running.sequence).tokens()) return false;
    blocks_.release(running.sequence);
    return true;
  });
}

}  // namespace shardproof
