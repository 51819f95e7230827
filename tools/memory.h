// What this process may still allocate.
#pragma once

namespace shardproof::tools {

/// Bytes: the kernel's MemAvailable, capped by what the cgroup's limit leaves. Infinite where neither can be read.
double available_memory();

}  // namespace shardproof::tools
