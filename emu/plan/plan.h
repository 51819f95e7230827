// A deployment plan: model, hardware, parallel degrees, workload and the claims its authors make.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/problem.h"
#include "emu/model/config.h"
#include "emu/plan/parallel.h"
#include "emu/plan/serving.h"

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
  /// A card whose figures hold where these are not stated (emu/timeline/presets.json); empty: none.
  std::string preset = {};
};

/// What `preset` may name.
inline constexpr std::string_view kHardwarePresets[] = {"a100", "h100", "h200", "h800", "b200", "mi300x"};

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

/// How a data-parallel replica without work, whose experts serve the others', takes part in a pass.
enum class Idle {
  zero,  ///< with no token
  pad,   ///< with one padded token, which is no number from the embedding on and whose results nobody reads (vLLM's
         ///< dummy run)
};
/// "zero", "pad".
constexpr const char* to_string(Idle idle) {
  return idle == Idle::zero ? "zero" : "pad";
}

/// How a token attends in latent attention (ops/latent.h).
enum class LatentForm { plain, absorbed };
/// "plain", "absorbed".
constexpr const char* to_string(LatentForm form) {
  return form == LatentForm::plain ? "plain" : "absorbed";
}

struct Workload {
  /// Tokens of each sequence of the (global) batch that are run through the model; of requests, Request::tokens().
  std::vector<std::int64_t> lengths = {};
  std::int64_t microbatches = 1;  ///< per data-parallel replica, and step
  std::uint64_t seed = 1;
  Idle idle = Idle::zero;
  Routing routing = {};
  /// Set where the sequences are requests, served step by step; else they are run whole, at once.
  std::optional<Serving> serving = {};
  /// Token ids of each sequence, as long as `lengths` say; none: made from the seed (batch.h).
  std::vector<std::vector<std::int32_t>> token_ids = {};

  /// What an engine's cache holds keys and values in ("fp8", "bfloat16", ...); empty: the format that it computes in.
  /// It is counted (bytes_of_cache_dtype()); what runs keeps the format of the run.
  std::string kv_cache_dtype = {};
  /// What the tokens after a prompt are computed in, with latent attention; not stated: latent_form.h.
  std::optional<LatentForm> latent_decode = {};

  std::int64_t batch() const { return static_cast<std::int64_t>(lengths.size()); }
  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (std::int64_t length : lengths) sum += length;
    return sum;
  }
  /// The same sequences run whole, at once.
  Workload whole() const {
    Workload result = *this;
    result.serving.reset();
    return result;
  }
  /// Their prompts alone, run whole.
  Workload prompts() const {
    Workload result = whole();
    if (serving) std::ranges::transform(serving->requests, result.lengths.begin(), &Request::prompt);
    if (serving) result.token_ids.clear();
    return result;
  }
};

/// Of one element; 0: not known.
constexpr int bytes_of_cache_dtype(std::string_view dtype) {
  if (dtype == "int8" || dtype == "fp8" || dtype == "fp8_e4m3" || dtype == "fp8_e5m2") return 1;
  return dtype == "bfloat16" || dtype == "float16" ? 2 : dtype == "float32" ? 4 : 0;
}
/// Of one element that the workload's cache holds, where the run's format has so many.
constexpr int cache_element_bytes(const Workload& workload, int of_run) {
  return workload.kv_cache_dtype.empty() ? of_run : bytes_of_cache_dtype(workload.kv_cache_dtype);
}

/// The lengths of its requests.
inline void set_lengths(Workload& workload) {
  workload.lengths.clear();
  for (const Request& request : workload.serving->requests) workload.lengths.push_back(request.tokens());
}

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
  /// What of the model's config is read otherwise than a reader may expect, or changes nothing here.
  std::vector<std::string> model_notes = {};

  int world() const { return parallel.world(); }
};

}  // namespace shardproof
