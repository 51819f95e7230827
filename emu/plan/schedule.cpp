#include "emu/plan/schedule.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <utility>

namespace shardproof {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

std::int64_t limit_of(std::int64_t stated) {
  return stated > 0 ? stated : kNoLimit;
}

/// One engine: the requests of a replica, step by step.
class Engine {
 public:
  Engine(const Serving& serving, int dcp, Range sequences)
      : serving_(serving),
        dcp_(dcp),
        free_blocks_(limit_of(serving.kv_blocks)),
        most_running_(limit_of(serving.max_sequences)) {
    for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) waiting_.push_back(s);
    // First come, first served.
    std::ranges::stable_sort(waiting_, {}, [&](std::int64_t s) { return request(s).arrival; });
  }

  bool done() const { return waiting_.empty() && running_.empty(); }
  /// The earliest step that has something to do.
  std::int64_t next_work() const { return running_.empty() ? request(waiting_.front()).arrival : 0; }

  std::vector<Chunk> step(std::int64_t now) {
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
    while (room > 0 && !waiting_.empty() && std::ssize(running_) < most_running_) {
      const std::int64_t next = waiting_.front();
      const std::int64_t blocks = serving_.blocks_of(request(next).tokens(), dcp_);
      if (request(next).arrival > now || blocks > free_blocks_) break;
      if (free_blocks_ != kNoLimit) free_blocks_ -= blocks;
      waiting_.pop_front();
      run(running_.emplace_back(Running{next, 0}));
    }
    leave();
    std::ranges::sort(chunks, {}, &Chunk::sequence);
    return chunks;
  }

 private:
  struct Running {
    std::int64_t sequence = 0;
    std::int64_t done = 0;  ///< tokens
  };

  const Request& request(std::int64_t sequence) const { return serving_.requests[static_cast<std::size_t>(sequence)]; }

  void leave() {
    std::erase_if(running_, [&](const Running& running) {
      if (running.done < request(running.sequence).tokens()) return false;
      if (free_blocks_ != kNoLimit) free_blocks_ += serving_.blocks_of(request(running.sequence).tokens(), dcp_);
      return true;
    });
  }

  const Serving& serving_;
  int dcp_;
  std::int64_t free_blocks_;
  std::int64_t most_running_;
  std::deque<std::int64_t> waiting_;
  std::vector<Running> running_;
};

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

std::vector<TimedStep> scheduled(const Serving& serving, int dcp, Range sequences) {
  Engine engine(serving, dcp, sequences);
  std::vector<TimedStep> steps;
  for (std::int64_t now = 0; !engine.done(); ++now) {
    now = std::max(now, engine.next_work());
    steps.push_back({now, engine.step(now)});
  }
  return steps;
}

std::vector<TimedStep> steps_of(const Workload& workload, int dcp, Range sequences) {
  if (!workload.serving) return whole_sequences(workload, sequences);
  return workload.serving->steps.empty() ? scheduled(*workload.serving, dcp, sequences)
                                         : stated(*workload.serving, sequences);
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
  return std::ssize(timed(parallel, workload).times);
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
  std::int64_t used = 0, most = 0;
  for (const std::vector<Chunk>& step : schedule) {
    for (const Chunk& chunk : step) {
      used += serving.blocks_of(chunk.end(), dcp) - serving.blocks_of(chunk.begin, dcp);
    }
    most = std::max(most, used);
    for (const Chunk& chunk : step) {
      const std::int64_t tokens = serving.requests[static_cast<std::size_t>(chunk.sequence)].tokens();
      if (chunk.end() == tokens) used -= serving.blocks_of(tokens, dcp);
    }
  }
  return most;
}

}  // namespace shardproof
