// One engine: the requests of a data-parallel replica, scheduled step by step (schedule.h has the rule).
//
// With prefix sharing a request that comes in maps the full blocks of its prompt that are in the cache already, and
// does not run their tokens, but at least the last one of the prompt, as vLLM does (vllm/v1/core/kv_cache_manager.py).
// They are there if a request that is being served has the same tokens up to there and has run them: in an earlier
// step, or in this one if it is before the other in the batch, whose order a step's chunks have. Of several, the one
// with the longest such prefix, of equal ones the first. A block is freed with the last request that has it.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/block_tables.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"
#include "emu/plan/serving.h"

namespace shardproof {

/// When a step begins. A request has come when both its arrivals have.
struct Moment {
  std::int64_t step = 0;
  double seconds = 0;
};

class Engine {
 public:
  /// Of the workload's requests, those of that range; `workload` outlives this. dcp: ranks that share out the blocks of
  /// a sequence.
  Engine(const Workload& workload, int dcp, Range sequences);

  bool done() const { return waiting_.empty() && running_.empty(); }
  /// A step has something to do: a request is being served, or has come.
  bool has_work(const Moment& now) const;
  /// When the next of those that have not come will have. There must be one.
  Moment next_arrival(const Moment& now) const;
  /// What is run in a step, in order of the sequences.
  std::vector<Chunk> step(const Moment& now);

 private:
  struct Running {
    std::int64_t sequence = 0;
    std::int64_t done = 0;    ///< tokens, run or shared
    std::int64_t before = 0;  ///< of these, before the step
  };
  /// What of a request is in the cache when it comes in.
  struct Hit {
    std::int64_t sequence = -1;  ///< whose blocks they are
    std::int64_t tokens = 0;
  };

  const Serving& serving() const { return *workload_.serving; }
  const Request& request(std::int64_t sequence) const { return serving().requests[static_cast<std::size_t>(sequence)]; }
  Hit in_cache(std::int64_t sequence) const;
  /// The cache has room for what the hit leaves of the request.
  bool fits(std::int64_t sequence, const Hit& hit) const;
  bool has_come(std::int64_t sequence, const Moment& now) const;
  void leave();

  const Workload& workload_;
  int dcp_;
  std::int64_t most_running_;
  BlockTables blocks_;                 ///< every request's for all its tokens
  std::vector<std::int64_t> waiting_;  ///< first come, first served
  std::vector<Running> running_;
};

}  // namespace shardproof
