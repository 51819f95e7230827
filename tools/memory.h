// What this process may still allocate, and what is done when work would need more.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace shardproof::tools {

/// Where the kernel tells of memory.
struct MemoryFiles {
  std::string proc = "/proc";
  std::string cgroups = "/sys/fs/cgroup";
};

struct AvailableMemory {
  double bytes = 0;  ///< infinite where nothing can be read
  std::string of;    ///< what limits it: "on this machine", "in the cgroup /build", "under ulimit -v"
};

/// The least of: the kernel's MemAvailable; what each cgroup leaves in which the process is, however deep, of version 1
/// and 2, with what of its page cache could be given up; and what the limits on the address space and on data leave.
AvailableMemory available_memory(const MemoryFiles& files = {});

/// Throws UsageError (usage_error.h) when work would need more than is available: that it does, and what `advice` makes
/// of the bytes that there are.
void require_memory(std::string_view what, double needed, const std::function<std::string(double)>& advice);

}  // namespace shardproof::tools
