// What may still be allocated, read from files as the kernel writes them.
#include "tools/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/tools/place.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

using testing::Folder;
using ::testing::HasSubstr;

/// A machine of which 8 GB are available.
class Machine {
 public:
  Machine() {
    write("proc/meminfo", "MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 7812500 kB\n");
    write("proc/self/statm", "1000 500 100 10 0 400 0\n");
  }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(folder_.path(name)).parent_path());
    folder_.write(name, text);
  }
  AvailableMemory available() const { return available_memory({folder_.path("proc"), folder_.path("cgroup")}); }

 private:
  Folder folder_;
};

TEST(AvailableMemory, IsTheKernelsWhereNothingElseLimits) {
  const Machine machine;

  EXPECT_EQ(machine.available().bytes, 8e9);
  EXPECT_EQ(machine.available().of, "on this machine");
}

TEST(AvailableMemory, IsInfiniteWhereNothingCanBeRead) {
  EXPECT_TRUE(std::isinf(available_memory({"/nowhere", "/nowhere"}).bytes));
}

TEST(AvailableMemory, IsTheLeastOfNestedCgroupsOfVersion2) {
  const Machine machine;
  machine.write("proc/self/cgroup", "0::/build/job\n");
  machine.write("cgroup/build/job/memory.max", "max\n");
  machine.write("cgroup/build/job/memory.current", "1000000\n");
  machine.write("cgroup/build/memory.max", "3000000000\n");
  machine.write("cgroup/build/memory.current", "2000000000\n");
  machine.write("cgroup/memory.current", "2000000000\n");

  EXPECT_EQ(machine.available().bytes, 1e9);
  EXPECT_EQ(machine.available().of, "in the cgroup /build");

  machine.write("cgroup/build/job/memory.max", "400000000\n");
  EXPECT_EQ(machine.available().bytes, 399e6);
  EXPECT_EQ(machine.available().of, "in the cgroup /build/job");
}

TEST(AvailableMemory, CountsPageCacheThatCanBeGivenUp) {
  const Machine machine;
  machine.write("proc/self/cgroup", "0::/\n");
  machine.write("cgroup/memory.max", "1000000000\n");
  machine.write("cgroup/memory.current", "900000000\n");
  machine.write("cgroup/memory.stat", "anon 100\nfile 700000000\ninactive_file 600000000\n");

  EXPECT_EQ(machine.available().bytes, 700e6);
}

TEST(AvailableMemory, IsTheLeastOfNestedCgroupsOfVersion1) {
  const Machine machine;
  machine.write("proc/self/cgroup", "12:cpu,cpuacct:/a\n9:hugetlb,memory:/user/b\n1:name=systemd:/c\n0::/d\n");
  machine.write("cgroup/memory/user/b/memory.limit_in_bytes", "9223372036854771712\n");
  machine.write("cgroup/memory/user/b/memory.usage_in_bytes", "5\n");
  machine.write("cgroup/memory/user/memory.limit_in_bytes", "2000000000\n");
  machine.write("cgroup/memory/user/memory.usage_in_bytes", "500000000\n");
  machine.write("cgroup/memory/user/memory.stat", "inactive_file 1\ntotal_inactive_file 100000000\n");

  EXPECT_EQ(machine.available().bytes, 1.6e9);
  EXPECT_EQ(machine.available().of, "in the cgroup /user");
}

TEST(AvailableMemory, FindsTheContainersLimitUnderTheHostsPath) {
  const Machine machine;
  machine.write("proc/self/cgroup", "0::/kubepods/pod1/container2\n");
  machine.write("cgroup/memory.max", "256000000\n");
  machine.write("cgroup/memory.current", "56000000\n");

  EXPECT_EQ(machine.available().bytes, 200e6);
}

TEST(AvailableMemory, IsZeroWhereMoreIsUsedThanAllowed) {
  const Machine machine;
  machine.write("proc/self/cgroup", "0::/\n");
  machine.write("cgroup/memory.max", "100\n");
  machine.write("cgroup/memory.current", "200\n");

  EXPECT_EQ(machine.available().bytes, 0);
}

TEST(RequireMemory, SaysWhatIsNeededWhatThereIsAndWhatHelps) {
  require_memory("this run", 1, [](double) { return ""; });
  try {
    require_memory("this run", 1e18, [](double bytes) { return bytes > 0 && bytes < 1e18 ? "advice" : "nonsense"; });
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("this run needs about 1000 PB of memory, "));
    EXPECT_THAT(error.what(), HasSubstr(" are available "));
    EXPECT_THAT(error.what(), ::testing::EndsWith("; advice"));
  }
}

}  // namespace
}  // namespace shardproof::tools
