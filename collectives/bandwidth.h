// Times a collective between virtual ranks, as nccl-tests does: bytes, time, algorithm and bus bandwidth, errors.
//
// The limit beside every figure is what the memory allows: the bytes that the operation must read and write, over the
// bandwidth of plain copies by the same threads over buffers of the same total size, measured in the same run.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "collectives/algorithm.h"
#include "collectives/executor.h"
#include "collectives/options.h"
#include "collectives/types.h"

namespace shardproof {

struct BandwidthCase {
  Operation operation =
      Operation::all_reduce;  ///< all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, barrier
  Algorithm algorithm = Algorithm::rank_order;
  int ranks = 16;
  std::size_t bytes = 0;  ///< S of traffic.h: of the vector, or of all parts together; float32 elements
  int gpus_per_node = 8;
};

struct BandwidthRow {
  BandwidthCase what;
  double seconds = 0;        ///< per call, the best of several repetitions
  double algbw = 0;          ///< GB/s: S / time
  double busbw = 0;          ///< GB/s: algbw times the factor of traffic.h
  double limit_seconds = 0;  ///< what the copies take; 0 for barrier
  std::size_t wrong = 0;     ///< elements of the results that are not exactly what they must be

  /// How much of the memory's speed the call reaches.
  double of_limit() const { return seconds > 0 ? limit_seconds / seconds : 0; }
};

/// Repeats calls for about `seconds`, and the copies for half as long in turns with them, after one call that is
/// checked element by element.
BandwidthRow measure_bandwidth(Executor& executor, const BandwidthCase& what, double seconds = 0.2);

/// Bytes that the operation reads and writes, over all ranks, when everything moves once.
double bytes_moved(const BandwidthCase& what);

/// 4 KiB, 16 KiB, ... 16 MiB.
std::vector<std::size_t> bandwidth_sizes();

/// The table as nccl-tests prints it; one line per row.
std::string bandwidth_table(const std::vector<BandwidthRow>& rows);

}  // namespace shardproof
