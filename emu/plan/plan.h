// A deployment plan: model, hardware, parallel degrees, workload and the claims its authors make.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emu/input/problem.h"
#include "emu/model/config.h"
#include "emu/plan/parallel.h"

namespace shardproof {

struct Hardware {
  std::int64_t gpus = 0;
  std::int64_t gpus_per_node = 8;
  double memory_gb = 0;              ///< per GPU, 10^9 bytes; 0 when not stated (so with every field below)
  double tflops = 0;                 ///< per GPU, dense, in the model's format
  double mfu = 0;                    ///< share of tflops reached, 0..1
  double memory_bandwidth_tbps = 0;  ///< 10^12 bytes a second
  double bandwidth_utilization = 0;  ///< share of the bandwidth reached, 0..1
  double link_gbps = 0;              ///< per GPU, 10^9 bytes a second
  double link_latency_us = 0;
};

/// Where tokens are said to go when no router is computed: on paper and in a graph. A run of numbers has its own
/// router.
struct Routing {
  /// Expert e is as popular as (e + 1)^-zipf: 0 is even.
  double zipf = 0;
  /// In place of zipf, unless empty: slots that each expert of a layer served, [layers, experts], or one row for all
  /// layers. A row adds up to top_k slots of some number of tokens, of which no expert served one twice.
  std::vector<std::vector<std::int64_t>> counts = {};

  bool is_even() const { return zipf == 0 && counts.empty(); }
  bool operator==(const Routing&) const = default;
};

/// Of Routing::counts, the most tokens that a row may speak of.
constexpr std::int64_t kMaxRoutedTokens = std::int64_t{1} << 31;

struct Workload {
  std::vector<std::int64_t> lengths = {};  ///< tokens of each sequence of the (global) batch
  std::int64_t microbatches = 1;           ///< per data-parallel replica
  std::uint64_t seed = 1;
  Routing routing = {};
  /// Token ids of each sequence, as long as `lengths` say; none: made from the seed (batch.h).
  std::vector<std::vector<std::int32_t>> token_ids = {};

  std::int64_t batch() const { return static_cast<std::int64_t>(lengths.size()); }
  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (std::int64_t length : lengths) sum += length;
    return sum;
  }
};

/// A figure that the plan's authors state.
struct Claim {
  std::string document = {};  ///< where it is stated
  std::string text = {};      ///< in words
  std::string quantity = {};  ///< a named function of the plan; see `check --list-quantities`
  std::string relation = {};  ///< "=", "<=", ">=", "~"
  double stated = 0;
  std::string unit = {};
};

struct Plan {
  std::string name = {};
  ModelConfig model = {};
  std::optional<Hardware> hardware = {};
  Parallel parallel = {};
  Workload workload = {};
  std::vector<std::string> notes = {};
  std::vector<Claim> claims = {};
  /// Degrees that the plan's file leaves out and another system's default has set, each with its arithmetic; not saved.
  std::vector<std::string> defaults = {};

  int world() const { return parallel.world(); }
};

}  // namespace shardproof
