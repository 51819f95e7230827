#include "emu/plan/schedule.h"

#include <algorithm>
#include <limits>
#include <set>
#include <span>
#include <utility>

#include "emu/plan/block_tables.h"
#include "emu/plan/engine.h"

namespace shardproof {
namespace {

/// A step and when it is taken.
struct TimedStep {
  std::int64_t at = 0;
  std::vector<Chunk> chunks;
};

std::vector<TimedStep> whole_sequences(const Workload& workload, Range sequences) {
  std::vector<Chunk> chunks;
  for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) {
    chunks.push_back({s, 0, workload.lengths[static_cast<std::size_t>(s)]});
  }
  return {{0, std::move(chunks)}};
}

std::vector<TimedStep> stated(const Serving& serving, Range sequences) {
  std::vector<TimedStep> steps;
  std::vector<std::int64_t> done(serving.requests.size(), 0);
  for (std::size_t at = 0; at < serving.steps.size(); ++at) {
    std::vector<Chunk> chunks;
    for (const StatedChunk& chunk : serving.steps[at]) {
      if (chunk.request < sequences.begin || chunk.request >= sequences.end()) continue;
      std::int64_t& before = done[static_cast<std::size_t>(chunk.request)];
      chunks.push_back({chunk.request, before, chunk.tokens});
      before += chunk.tokens;
    }
    std::ranges::sort(chunks, {}, &Chunk::sequence);
    if (!chunks.empty()) steps.push_back({static_cast<std::int64_t>(at), std::move(chunks)});
  }
  return steps;
}

std::vector<TimedStep> scheduled(const Workload& workload, int dcp, Range sequences) {
  Engine engine(workload, dcp, sequences);
  std::vector<TimedStep> steps;
  for (std::int64_t now = 0; !engine.done(); ++now) {
    const Moment at{.step = now, .seconds = std::numeric_limits<double>::infinity()};
    if (!engine.has_work(at)) now = engine.next_arrival(at).step;
    steps.push_back({now, engine.step({.step = now, .seconds = at.seconds})});
  }
  return steps;
}

std::vector<TimedStep> steps_of(const Workload& workload, int dcp, Range sequences) {
  if (!workload.serving) return whole_sequences(workload, sequences);
  return workload.serving->steps.empty() ? scheduled(workload, dcp, sequences) : stated(*workload.serving, sequences);
}

/// The replica's requests are those of the one before it, in numbers of their own: so is what it does.
bool like_the_one_before(const Parallel& parallel, const Workload& workload, int dp) {
  if (dp == 0 || !workload.serving || !workload.serving->steps.empty()) return false;
  const auto requests_of = [&](int replica) {
    const Range range = sequences_of_replica(parallel, workload.batch(), replica);
    return std::span(workload.serving->requests)
        .subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.count));
  };
  return std::ranges::equal(requests_of(dp - 1), requests_of(dp));
}

/// What the replicas do, and when at least one of them does something.
struct Timed {
  std::vector<std::vector<TimedStep>> replicas;
  std::vector<std::int64_t> times;
};

Timed timed(const Parallel& parallel, const Workload& workload) {
  Timed all;
  for (int dp = 0; dp < parallel.dp; ++dp) {
    all.replicas.push_back(steps_of(workload, parallel.dcp, sequences_of_replica(parallel, workload.batch(), dp)));
    for (const TimedStep& step : all.replicas.back()) all.times.push_back(step.at);
    std::ranges::sort(all.times);
    all.times.erase(std::unique(all.times.begin(), all.times.end()), all.times.end());
  }
  return all;
}

}  // namespace

Range sequences_of_replica(const Parallel& parallel, std::int64_t sequences, int dp) {
  return partition(sequences, parallel.dp, dp);
}

std::int64_t count_steps(const Parallel& parallel, const Workload& workload) {
  std::set<std::int64_t> times;
  for (int dp = 0; dp < parallel.dp; ++dp) {
    if (like_the_one_before(parallel, workload, dp)) continue;
    const Range sequences = sequences_of_replica(parallel, workload.batch(), dp);
    for (const TimedStep& step : steps_of(workload, parallel.dcp, sequences)) times.insert(step.at);
  }
  return std::ssize(times);
}

std::vector<ReplicaSchedule> make_schedule(const Parallel& parallel, const Workload& workload) {
  Timed all = timed(parallel, workload);
  std::vector<ReplicaSchedule> schedule;
  for (std::vector<TimedStep>& steps : all.replicas) {
    ReplicaSchedule& replica = schedule.emplace_back(all.times.size());
    for (TimedStep& step : steps) {
      const auto index = std::ranges::lower_bound(all.times, step.at) - all.times.begin();
      replica[static_cast<std::size_t>(index)] = std::move(step.chunks);
    }
  }
  return schedule;
}

std::int64_t kv_blocks_of(const Serving& serving, const ReplicaSchedule& schedule, int dcp) {
  if (serving.kv_blocks > 0) return serving.kv_blocks;
  BlockTables blocks(serving.tokens_of_block(dcp));
  std::int64_t most = 0;
  for (const std::vector<Chunk>& step : schedule) {
    for (const Chunk& chunk : step) {
      if (chunk.prefix_of >= 0) blocks.share(chunk.sequence, chunk.prefix_of, chunk.begin);
      blocks.extend(chunk.sequence, chunk.end());
    }
    most = std::max(most, blocks.used_blocks());
    for (const Chunk& chunk : step) {
      const std::int64_t tokens = serving.requests[static_cast<std::size_t>(chunk.sequence)].tokens();
      if (chunk.end() == tokens) blocks.release(chunk.sequence);
    }
  }
  return most;
}

std::vector<std::int64_t> kv_blocks_by_replica(const Parallel& parallel, const Workload& workload) {
  std::vector<std::int64_t> blocks;
  for (int dp = 0; dp < parallel.dp; ++dp) {
    if (like_the_one_before(parallel, workload, dp)) {
      blocks.push_back(blocks.back());
      continue;
    }
    ReplicaSchedule schedule;
    for (TimedStep& step : steps_of(workload, parallel.dcp, sequences_of_replica(parallel, workload.batch(), dp))) {
      schedule.push_back(std::move(step.chunks));
    }
    blocks.push_back(kv_blocks_of(*workload.serving, schedule, parallel.dcp));
  }
  return blocks;
}

}  // namespace shardproof
