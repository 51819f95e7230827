// What is run in each step of an engine: chunks of sequences.
//
// A forward over whole sequences is one step. Requests are scheduled by every data-parallel replica on its own, with
// vLLM's rule (vllm/v1/core/sched/scheduler.py): first the requests that are being served, in the order in which they
// came in, each the one token that it has next, or what is left of its prompt; then those that wait, first come, first
// served, while there is room. A prompt is cut to what is left of the step's tokens. A request comes in only when the
// cache has blocks for all its tokens, so that none is ever sent back (vLLM preempts instead).
//
// Example, at most 6 tokens a step, prompts of 4 and 5, outputs of 3: {0: 0..4, 1: 0..2}, {0: 4, 1: 2..5}, {0: 5, 1:
// 5}, {1: 6}.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/parallel.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"
#include "emu/plan/serving.h"

namespace shardproof {

/// By step, what a replica runs: in order of the sequences, which are numbered over the whole batch.
using ReplicaSchedule = std::vector<std::vector<Chunk>>;

/// The sequences of a data-parallel replica, of `sequences`.
Range sequences_of_replica(const Parallel& parallel, std::int64_t sequences, int dp);

/// By replica; all have as many steps, of which none is empty on every replica. The plan must be valid (validate.h).
std::vector<ReplicaSchedule> make_schedule(const Parallel& parallel, const Workload& workload);

/// How many steps that is, of requests and without building them for every replica.
std::int64_t count_steps(const Parallel& parallel, const Workload& workload);

/// Blocks that the cache of a replica's ranks has, `dcp` of which share it: as stated, or the most in use at once.
std::int64_t kv_blocks_of(const Serving& serving, const ReplicaSchedule& schedule, int dcp);

/// The same of each replica of a plan that serves requests, without building the schedules of those that are alike.
std::vector<std::int64_t> kv_blocks_by_replica(const Parallel& parallel, const Workload& workload);

}  // namespace shardproof
