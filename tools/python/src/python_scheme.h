// A scheme whose ranks are Python threads: what the package's Python code calls.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "collectives/thread_ranks.h"
#include "emu/judge/scheme.h"

namespace shardproof::python {

/// One call, with the buffers' memory; counts are in elements.
struct CallRequest {
  Operation operation{};
  ElementType type{};
  const void* in = nullptr;
  std::size_t in_count = 0;
  void* out = nullptr;
  std::size_t out_count = 0;
  ReduceOptions options = {};
  int root = -1;
  std::optional<std::vector<std::size_t>> counts;
  std::vector<std::size_t> recv_counts;
  std::vector<internal::Part> sends;  ///< of an exchange
  std::vector<internal::Part> recvs;
  const char* file = "";
  const char* function = "";
  std::uint32_t line = 0;
};

struct GroupHandle {
  GroupHandle(std::uint64_t of_run, const Communicator& made)
      : run(of_run), rank(to_int(made.rank())), group(made.group()), communicator(made) {}

  std::uint64_t run;
  int rank;
  Group group;  ///< a copy: the handle may outlive the run
  Communicator communicator;
};

inline constexpr int kMaxThreadRanks = 1024;

class PythonScheme {
 public:
  PythonScheme(const Parallel& parallel, double patience_seconds);

  const Parallel& parallel() const { return parallel_; }
  /// What verify_scheme throws. Not from a rank's thread.
  VerifyReport run(const ExpectedTaps& expected, SchemeOptions options);
  void interrupt() { ranks_.interrupt(); }
  void close() { ranks_.close(); }

  /// From a rank's own thread, as all below.
  bool begin(int rank);
  /// `failure`: what the rank raised, in words.
  void end(int rank, const std::optional<std::string>& failure);
  /// Of an axis ("tp"), "world", or, under a label, these ranks. Throws std::invalid_argument, and RunOver.
  GroupHandle group(int rank, const std::string& axis, const std::vector<int>& members);
  /// Throws InvalidCall, RunOver, and std::logic_error from another thread or process.
  void call(int rank, const GroupHandle& group, const CallRequest& request);
  /// The same call under way until it is waited for; its buffers live until then.
  CallHandle issue(int rank, const GroupHandle& group, const CallRequest& request);
  void wait(int rank, CallHandle& handle);
  /// Both at once.
  void issue_and_wait(int rank, const GroupHandle& group, const CallRequest& request);
  void tap(int rank, const std::string& name, int step, const Placement& placement, const TapValues& values);
  std::vector<int> at(int rank) const;

 private:
  struct Seat {
    Rank* rank = nullptr;
    std::uint64_t run = 0;
    std::thread::id thread;
    std::exception_ptr refused;  // the InvalidCall that Python code may let through
  };

  Seat& own_seat(int rank);
  template <class Wait>
  void waiting(int rank, const Wait& wait);
  PendingCall pending(int rank, const GroupHandle& group, const CallRequest& request);

  Parallel parallel_;
  ThreadRanks ranks_;
  std::vector<Seat> seats_;
  int process_;
};

/// A copy of the text that lives for ever: one of each.
const char* interned(const std::string& text);

}  // namespace shardproof::python
