// What a rank did: its operations, and the weights it holds. Collectives are recorded by collectives/.
//
// Balance figures, projections and the deployment graph are folds over these records, so they cannot drift from the
// run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardproof {

/// One call of an op on one rank.
struct OpRecord {
  std::string_view op;      ///< "attention.q", "moe.expert", ...: a literal of the program
  std::int32_t layer = -1;  ///< -1 outside the layers
  std::int32_t microbatch = 0;
  std::int32_t expert = -1;  ///< the expert's index in the model, where the op belongs to one
  std::int64_t rows = 0;     ///< shape of the result
  std::int64_t cols = 0;
  double flops = 0;
  double bytes = 0;              ///< read and written, in the run's format
  std::int64_t collectives = 0;  ///< how many collectives the rank had completed before
};

/// One weight slice that a rank holds.
struct WeightRecord {
  std::string name;
  std::int32_t layer = -1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t bytes = 0;  ///< in the run's format
};

struct RankTrace {
  std::vector<OpRecord> ops;
  std::vector<WeightRecord> weights;
};

}  // namespace shardproof
