#include "emu/plan/prefix.h"

#include <algorithm>

namespace shardproof {

std::int64_t common_prefix(const Workload& workload, std::int64_t request, std::int64_t other) {
  const auto one = static_cast<std::size_t>(request), two = static_cast<std::size_t>(other);
  const Request &a = workload.serving->requests[one], &b = workload.serving->requests[two];
  if (workload.token_ids.empty()) return a.prefix_group == b.prefix_group ? std::min(a.prefix, b.prefix) : 0;
  const std::vector<std::int32_t>&ids = workload.token_ids[one], &others = workload.token_ids[two];
  const auto [end, ignored] =
      std::mismatch(ids.begin(), ids.begin() + a.prompt, others.begin(), others.begin() + b.prompt);
  return end - ids.begin();
}

}  // namespace shardproof
