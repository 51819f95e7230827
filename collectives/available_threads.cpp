#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#include "collectives/executor.h"

namespace shardproof {

namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

int affinity_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return kUnlimited;
  return std::atof(quota.c_str()) / period;
}

double quota_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return kUnlimited;
  return quota / period;
}

// The smallest quota from the process's own cgroup up to the root of its hierarchy.
double smallest_quota(const std::string& root, std::string path, double (*quota)(const std::string&)) {
  double smallest = quota(root);
  while (!path.empty() && path != "/") {
    smallest = std::min(smallest, quota(root + path));
    path.resize(path.find_last_of('/'));
  }
  return smallest;
}

double cgroup_quota() {
  double smallest = kUnlimited;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      smallest = std::min(smallest, smallest_quota("/sys/fs/cgroup", path, quota_v2));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      smallest = std::min(smallest, smallest_quota("/sys/fs/cgroup/cpu", path, quota_v1));
    }
  }
  return smallest;
}

}  // namespace

int available_threads() {
  const int threads = affinity_threads();
  const double quota = cgroup_quota();
  return quota >= threads ? threads : std::max(1, static_cast<int>(std::ceil(quota)));
}

}  // namespace shardproof
