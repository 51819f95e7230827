// A search held to the one that passes nothing over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "emu/search/search.h"

namespace shardproof::testing {

/// Requests that are served at once, all alike.
struct ServedBatch {
  std::int64_t requests = 64, prompt = 1024, output = 128;
};

struct SearchCase {
  std::string model;  ///< of plans/models/configs
  int gpus = 8;
  std::string preset = "h100";
  double memory_gb = 80;
  ServedBatch batch = {};
};

/// For every objective the best layout is that of an exhaustive search. Returns how many layouts only that one tried.
std::size_t expect_best_of_all(const SearchCase& asked);

}  // namespace shardproof::testing
