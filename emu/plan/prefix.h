// What prompts have in common at their beginning, of which a paged cache keeps one copy.
//
// Two requests of a prefix_group begin with as many equal tokens as the shorter of their prefixes has; where the
// workload names its token ids, these tell instead.
#pragma once

#include <cstdint>

#include "emu/plan/plan.h"

namespace shardproof {

/// Tokens that the prompts of both requests begin with.
std::int64_t common_prefix(const Workload& workload, std::int64_t request, std::int64_t other);

}  // namespace shardproof
