// One engine: the requests of a data-parallel replica, scheduled step by step (schedule.h has the rule).
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/partition.h"
#include "emu/plan/serving.h"

namespace shardproof {

/// When a step begins. A request has come when both its arrivals have.
struct Moment {
  std::int64_t step = 0;
  double seconds = 0;
};

class Engine {
 public:
  /// Of the requests, those of that range; `serving` outlives this. dcp: ranks that share out the blocks of a sequence.
  Engine(const Serving& serving, int dcp, Range sequences);

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
    std::int64_t done = 0;  ///< tokens
  };

  const Request& request(std::int64_t sequence) const { return serving_.requests[static_cast<std::size_t>(sequence)]; }
  bool has_come(std::int64_t sequence, const Moment& now) const;
  void leave();

  const Serving& serving_;
  int dcp_;
  std::int64_t free_blocks_;
  std::int64_t most_running_;
  std::vector<std::int64_t> waiting_;  ///< first come, first served
  std::vector<Running> running_;
};

}  // namespace shardproof
