// A workload of requests: what comes in, and what an engine may do of it in one step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace shardproof {

/// A prompt, and how many tokens come out after it. The first comes of the prompt's own pass; every other one takes a
/// step in which the token before it is run through the model. Hence the last of the output is never run.
struct Request {
  std::int64_t prompt = 0;   ///< tokens
  std::int64_t output = 0;   ///< tokens
  std::int64_t arrival = 0;  ///< step from which on it may be served
  double arrival_s = 0;      ///< seconds from which on it may be served, by the virtual clock alone
  std::int64_t prefix = 0;   ///< tokens that its prompt begins with, the same as those of others of its prefix_group
  std::int64_t prefix_group = 0;

  /// That are run through the model, and are in the cache at the end.
  std::int64_t tokens() const { return prompt + std::max<std::int64_t>(output - 1, 0); }
  bool operator==(const Request&) const = default;
};

/// Some tokens of a sequence that are run together: begin .. begin + count of it. Those before them are in the cache.
struct Chunk {
  std::int64_t sequence = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
  /// Of the first chunk of a request that does not run all its tokens: the sequence whose blocks of the cache hold
  /// those before `begin`; else -1.
  std::int64_t prefix_of = -1;
  std::int64_t end() const { return begin + count; }
  bool operator==(const Chunk&) const = default;
};

/// What a step is told to run of a request, where the plan states its steps.
struct StatedChunk {
  std::int64_t request = 0;
  std::int64_t tokens = 0;
  bool operator==(const StatedChunk&) const = default;
};

struct Serving {
  std::vector<Request> requests;                ///< a sequence of the batch each, in its order
  std::int64_t max_tokens_per_step = 0;         ///< of a data-parallel replica; 0: any number
  std::int64_t max_sequences = 0;               ///< of a replica at once; 0: any number
  std::int64_t kv_block_size = 16;              ///< tokens
  std::int64_t kv_blocks = 0;                   ///< that a rank's cache has; 0: as many as are needed
  bool prefix_sharing = false;                  ///< full blocks of prompts that begin alike are in the cache once
  std::vector<std::vector<StatedChunk>> steps;  ///< in place of the scheduler's, unless empty
  bool operator==(const Serving&) const = default;

  /// Tokens of a sequence that a block has room for, on all ranks of dcp together.
  std::int64_t tokens_of_block(int dcp) const { return kv_block_size * dcp; }
  /// Of the cache, that hold so many tokens of a sequence.
  std::int64_t blocks_of(std::int64_t tokens, int dcp) const {
    return (tokens + tokens_of_block(dcp) - 1) / tokens_of_block(dcp);
  }
};

}  // namespace shardproof
