// The shardproof command while it runs, for tests that do something to it meanwhile.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace shardproof::testing {

/// Ended and waited for at the end of the scope.
class RunningCommand {
 public:
  /// Without a shell in between. Its output goes to these files; "" is /dev/null. `environment` is added to the test's.
  RunningCommand(const std::vector<std::string>& arguments, const std::string& out, const std::string& err,
                 const std::vector<std::string>& environment = {});
  RunningCommand(const RunningCommand&) = delete;
  RunningCommand& operator=(const RunningCommand&) = delete;
  ~RunningCommand();

  void signal(int number) const;
  /// The status of waitpid.
  int wait();
  /// The same without waiting; false while it runs.
  bool ended(int& status);
  /// After wait(): the most bytes that it had in memory at once; no less than this process had when it was started.
  double most_bytes() const { return most_bytes_; }

 private:
  pid_t id_ = -1;
  double most_bytes_ = 0;
};

/// Waits until `holds`, ten seconds at the most; whether it came to hold.
bool wait_until(bool (*holds)(const void*), const void* what);
template <class Holds>
bool wait_until(const Holds& holds) {
  return wait_until([](const void* what) -> bool { return (*static_cast<const Holds*>(what))(); }, &holds);
}

}  // namespace shardproof::testing
