#include "tools/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace shardproof::tools {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

double number_in(const char* path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? value : kUnlimited;
}

double kernel_available() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::string unit;
  double value = 0;
  while (file >> key >> value) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return value * 1024;
  }
  return kUnlimited;
}

double cgroup_available(const char* limit, const char* usage) {
  const double most = number_in(limit);
  const double used = number_in(usage);
  return most < kUnlimited && used < kUnlimited ? std::max(0.0, most - used) : kUnlimited;
}

}  // namespace

double available_memory() {
  return std::min(
      {kernel_available(), cgroup_available("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
       cgroup_available("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")});
}

}  // namespace shardproof::tools
