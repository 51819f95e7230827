#include "tools/memory.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

/// The number that a file holds; none for "max".
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

/// The number behind a word in lines of "word number".
std::optional<double> number_behind(const std::string& path, std::string_view word) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    double value = 0;
    if (words >> key >> value && key == word) return value;
  }
  return std::nullopt;
}

/// How the versions of cgroups name things.
struct CgroupNames {
  const char* limit;
  const char* usage;
  const char* reclaimable;  ///< in memory.stat: page cache that is given up when memory is short
};
constexpr CgroupNames kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr CgroupNames kVersion2{"memory.max", "memory.current", "inactive_file"};

void take_less(AvailableMemory& least, double bytes, const std::string& of) {
  if (bytes >= least.bytes) return;
  least.bytes = std::max(0.0, bytes);
  least.of = of;
}

/// The group and all above it: a limit holds for what is below.
void take_cgroups(const std::string& mount, std::string group, const CgroupNames& names, AvailableMemory& least) {
  for (;;) {
    const std::string folder = mount + (group == "/" ? "" : group) + "/";
    const auto limit = number_in(folder + names.limit);
    const auto usage = number_in(folder + names.usage);
    if (limit && usage) {
      const double cache = number_behind(folder + "memory.stat", names.reclaimable).value_or(0);
      take_less(least, *limit - std::max(0.0, *usage - cache), fmt::format("in the cgroup {}", group));
    }
    // Inside a container the path may be the host's, of which only the end of it, or nothing, is there.
    const std::size_t slash = group.rfind('/');
    if (group == "/" || slash == std::string::npos) return;
    group = slash == 0 ? "/" : group.substr(0, slash);
  }
}

bool lists_memory(std::string_view controllers) {
  for (;;) {
    const std::size_t comma = controllers.find(',');
    if (controllers.substr(0, comma) == "memory") return true;
    if (comma == std::string_view::npos) return false;
    controllers.remove_prefix(comma + 1);
  }
}

/// Lines of "number:controllers:path": version 2 has no controllers there.
void take_cgroups(const MemoryFiles& files, AvailableMemory& least) {
  std::ifstream file(files.proc + "/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (!group.starts_with('/')) continue;
    if (controllers.empty()) {
      take_cgroups(files.cgroups, group, kVersion2, least);
      take_cgroups(files.cgroups + "/unified", group, kVersion2, least);
    } else if (lists_memory(controllers)) {
      take_cgroups(files.cgroups + "/memory", group, kVersion1, least);
    }
  }
}

/// `used`: which number of /proc/self/statm counts against the limit, in pages.
void take_limit(const MemoryFiles& files, int resource, int used, const char* of, AvailableMemory& least) {
  struct rlimit limit {};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  std::ifstream file(files.proc + "/self/statm");
  double pages = 0;
  for (int i = 0; i <= used; ++i) file >> pages;
  take_less(least, static_cast<double>(limit.rlim_cur) - pages * static_cast<double>(sysconf(_SC_PAGESIZE)), of);
}

}  // namespace

AvailableMemory available_memory(const MemoryFiles& files) {
  AvailableMemory least{std::numeric_limits<double>::infinity(), "on this machine"};
  if (const auto kilobytes = number_behind(files.proc + "/meminfo", "MemAvailable:")) {
    take_less(least, *kilobytes * 1024, "on this machine");
  }
  take_cgroups(files, least);
  take_limit(files, RLIMIT_AS, 0, "under ulimit -v", least);
  take_limit(files, RLIMIT_DATA, 5, "under ulimit -d", least);
  return least;
}

void require_memory(std::string_view what, double needed, const std::function<std::string(double)>& advice) {
  const AvailableMemory available = available_memory();
  if (needed <= available.bytes) return;
  throw UsageError(fmt::format("{} needs about {} of memory, {} are available {}; {}", what, human_bytes(needed),
                               human_bytes(available.bytes), available.of, advice(available.bytes)));
}

}  // namespace shardproof::tools
