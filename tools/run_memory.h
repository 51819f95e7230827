// Whether a run fits the memory, and what would.
#pragma once

#include <string>

#include "emu/plan/plan.h"
#include "emu/plan/scale.h"
#include "ops/format.h"

namespace shardproof::tools {

/// Of a run, what its memory depends on besides the plan.
struct RunKind {
  ops::Format format{};
  int threads = 0;             ///< as VerifyOptions has them
  bool whole_weights = false;  ///< they are a checkpoint's, which cannot be scaled
};

/// Throws UsageError (usage_error.h) when a run of the plan at this scale would not fit the memory, with flags that
/// would make it fit, if any do. Throws TooManyRecords.
void require_memory_to_run(const Plan& original, const ScaleOptions& scale, const RunKind& kind);

/// Flags under which the plan needs no more than so many bytes, as they would be typed, with what it then needs; or
/// that there are none. The largest that is found.
std::string smaller_run(const Plan& original, const ScaleOptions& scale, const RunKind& kind, double bytes);

/// As they would be typed: "--scale 4 --batch 8".
std::string flags_of(const ScaleOptions& options);

}  // namespace shardproof::tools
