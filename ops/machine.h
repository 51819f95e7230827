// What this machine can do at most, measured in the run that is judged by it.
//
// Each function measures for some milliseconds and gives the mean: on a shared machine the answer differs from one
// second to the next, so that what is judged by it must be timed beside it (Beside).
#pragma once

#include <cstddef>

namespace shardproof::ops {

/// Multiply-adds on independent vector registers, in flop/s of one thread. T is float or double.
template <class T>
double peak_flops();

/// Bytes a second of one thread that sums `bytes` of memory again and again.
double read_bandwidth(std::size_t bytes);

/// Bytes a second, read and written ones together, of one thread that copies `bytes` of memory.
double copy_bandwidth(std::size_t bytes);

/// Time that the calling thread ran: another process on its core does not count.
double thread_seconds();

/// Read and copy bandwidth of a working set that no cache holds.
double memory_read_bandwidth();
double memory_copy_bandwidth();

/// A limit of the machine while something is timed: the mean of just before, when this is made, and just after.
class Beside {
 public:
  explicit Beside(double (*limit)()) : limit_(limit), before_(limit()) {}
  /// Measures again: call it as soon as the timing ends.
  double rate() const { return (before_ + limit_()) / 2; }

 private:
  double (*limit_)();
  double before_;
};

}  // namespace shardproof::ops
