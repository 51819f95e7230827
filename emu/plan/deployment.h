// A plan worked out: who holds which tokens and weights, and who does what when.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/plan/layout.h"
#include "emu/plan/timetable.h"
#include "emu/plan/token_map.h"

namespace shardproof {

struct Deployment {
  TokenMap tokens;
  std::vector<Layout> layouts;  ///< by rank
  Timetable timetable;
  std::optional<Serving> serving;       ///< of the workload
  std::vector<std::int64_t> kv_blocks;  ///< by replica, of a rank's cache; none without requests
};

/// The physical expert that serves a token, a global row, that has chosen that expert of the layer. Of a row that is
/// not run, that of the row that is run in its place.
std::int64_t physical_expert(const ModelConfig& model, const Deployment& deployment, int layer, std::int64_t row,
                             std::int64_t expert);
/// The place along ep of the rank whose experts serve a token, a global row, that has chosen that expert of the layer.
int serving_ep(const ModelConfig& model, const Deployment& deployment, int layer, std::int64_t row,
               std::int64_t expert);

/// A forward over whole sequences, or the steps in which requests are served. The plan must be valid (validate.h).
Deployment deploy(const ModelConfig& model, const Parallel& parallel, const Workload& workload);
/// Of these tokens alone, without a cache: microbatches and routing are the workload's.
Deployment deploy(const ModelConfig& model, const Parallel& parallel, TokenMap tokens, const Workload& workload);

}  // namespace shardproof
