// What `shardproof search` is asked for: its flags, and what they mean, read once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "emu/search/search.h"
#include "tools/file_uses.h"
#include "tools/hardware_flags.h"

namespace shardproof::tools {

struct SearchFlags {
  std::string model;
  HardwareFlags hardware;
  std::optional<std::int64_t> gpus, gpus_per_node, prompt, output;
  std::optional<double> memory_gb;
  std::string batch;  ///< "64" or "64,256,1024"
  std::string most, least;
  std::string slo;
  std::int64_t top = 10;
  std::int64_t prove = 0;
  std::int64_t layers = 2;  ///< of a proof
  bool exhaustive = false;
  std::string write;
  std::string json;
  int threads = 0;
};

struct SearchRequest {
  SearchSpace space;
  SearchOptions options;
  /// The plan that MODEL is, where it is one for so many GPUs and its workload is the one that is searched for.
  std::optional<Plan> given;
};

/// "ttft=10s,tpot=50ms". Throws UsageError where a limit is not known, or has no unit.
ServiceLimits parse_slo(const std::string& text);

/// Throws UsageError.
SearchRequest read_request(const SearchFlags& flags, FileUses& files);

}  // namespace shardproof::tools
