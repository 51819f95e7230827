// What this machine can do at most, measured in the run that is judged by it.
#pragma once

#include <cstddef>

namespace shardproof::bench {

/// Multiply-adds on independent vector registers, in flop/s of one thread. T is float or double.
template <class T>
double peak_flops();

/// Bytes a second of one thread that sums `bytes` of memory again and again.
double read_bandwidth(std::size_t bytes);

/// Bytes a second, read and written ones together, of one thread that copies `bytes` of memory.
double copy_bandwidth(std::size_t bytes);

/// Read and copy bandwidth of a working set that no cache holds.
double memory_read_bandwidth();
double memory_copy_bandwidth();

}  // namespace shardproof::bench
