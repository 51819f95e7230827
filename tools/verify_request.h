// What `shardproof verify` is asked for: its flags, and what they mean, read once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/algorithm.h"
#include "emu/judge/verify.h"
#include "emu/plan/runnable.h"
#include "emu/weights/checkpoint.h"
#include "tools/plan_argument.h"

namespace shardproof::tools {

/// In place of an order of the all-reduce: every one.
inline constexpr const char* kAllOrders = "all";

struct VerifyFlags {
  std::string plan;
  std::optional<std::string> format;
  ScaleFlags scale;
  std::optional<std::uint64_t> seed;
  int threads = 0;
  std::optional<std::uint64_t> schedule;
  std::string all_reduce{to_string(Algorithm::rank_order)};
  std::optional<std::string> wire;
  std::optional<std::string> accumulate;
  std::string checkpoint;
  std::string json;
  std::string junit;
  std::string record;
  std::string baseline;
  std::string dump;
  bool amplification = false;
  bool generate = false;
  std::optional<double> max_amplification;
  bool all_taps = false;

  bool uses_baseline() const { return !record.empty() || !baseline.empty(); }
};

/// What is run, read once from the flags and the files that they name.
struct Request {
  std::string name;  ///< of the plan, in messages
  Plan original;
  ScaleOptions scale;
  std::unique_ptr<Checkpoint> checkpoint;
  VerifyOptions options;
  std::vector<Algorithm> orders;  ///< of the all-reduce
};

/// `scale` is that of the flags; `files` gets what was read. Throws UsageError for a plan or checkpoint that cannot be
/// read, or do not fit.
Request read_request(const VerifyFlags& flags, const ScaleOptions& scale, FileUses& files);

/// The plan at the size that is run. Throws UsageError when it would not fit the memory, or reaches past what the
/// checkpoint's model attends to.
RunnablePlan scaled_to_run(const Request& request, const RunnablePlan& original);

}  // namespace shardproof::tools
