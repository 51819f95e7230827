#include "tools/run_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "tools/memory.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

/// Each a little smaller than the one before: first the widths, then the batch, then the lengths; with the widths as
/// they are where these cannot be scaled.
std::vector<ScaleOptions> smaller(const Plan& plan, const ScaleOptions& from, bool whole_weights) {
  constexpr std::int64_t kMostDivisor = 4096;
  std::vector<ScaleOptions> all;
  ScaleOptions at = from;
  if (!whole_weights && from.mode != ScaleOptions::Mode::automatic) {
    at.mode = ScaleOptions::Mode::divide;
    const std::int64_t first = from.mode == ScaleOptions::Mode::divide ? from.divisor * 2 : 2;
    for (at.divisor = first; at.divisor <= kMostDivisor; at.divisor *= 2) all.push_back(at);
    at.mode = ScaleOptions::Mode::automatic;
    all.push_back(at);
  }
  for (std::int64_t batch = plan.workload.batch() / 2; batch > 0; batch /= 2) {
    at.batch = batch;
    all.push_back(at);
  }
  for (std::int64_t length = std::ranges::max(plan.workload.lengths) / 2; length > 0; length /= 2) {
    at.sequence = length;
    all.push_back(at);
  }
  return all;
}

}  // namespace

std::string flags_of(const ScaleOptions& options) {
  std::string text = "--scale " + to_string(options);
  if (options.batch) text += fmt::format(" --batch {}", *options.batch);
  if (options.sequence) text += fmt::format(" --sequence {}", *options.sequence);
  if (options.layers) text += fmt::format(" --layers {}", *options.layers);
  return text;
}

std::string smaller_run(const Plan& original, const ScaleOptions& scale, const RunKind& kind, double bytes) {
  for (const ScaleOptions& options : smaller(scaled(original, scale), scale, kind.whole_weights)) {
    const Plan candidate = scaled(original, options);
    if (!validate(candidate).empty()) continue;
    if (const double needed = estimated_bytes(candidate, kind.format, kind.threads); needed <= bytes) {
      return fmt::format(
          "{} would need {}",
          kind.whole_weights ? flags_of(options).substr(flags_of(options).find("--b")) : flags_of(options),
          human_bytes(needed));
    }
  }
  return "no smaller size of it fits; it takes a plan of fewer ranks or layers, or more memory";
}

void require_memory_to_run(const Plan& original, const ScaleOptions& scale, const RunKind& kind) {
  require_memory("this run", estimated_bytes(scaled(original, scale), kind.format, kind.threads),
                 [&](double bytes) { return smaller_run(original, scale, kind, bytes); });
}

}  // namespace shardproof::tools
