// How long a collective moves its data, once its last rank has arrived.
//
//   alpha + max(inside.effective(bytes inside) / inside.bytes_per_second,
//               across.effective(bytes across) / across.bytes_per_second)
//
// P ranks lie on M nodes, at most G on one. `wire` bytes are what the busiest rank has to send, or to take in:
//   all_reduce      2 (P-1)/P S of a vector of S bytes
//   all_gather      (P-1)/P S of the S bytes that all get; where parts differ, S less the rank's own
//   reduce_scatter  (P-1)/P S of a vector of S bytes
//   all_to_all      what goes to, or comes from, other ranks: the larger, of the rank with the most (real split sizes)
//   send, recv      S
// On more than one node a reduction or gather is hierarchical: inside (G-1)/G of S, across (M-1)/M of S/G, pipelined,
// so that the slower of the two decides. Of an all-to-all the peers of other nodes get their even share, (P-G)/(P-1).
// alpha is base + step * steps: a ring's steps inside (2 (P-1) of an all-reduce, P-1 of a gather or scatter), a tree's
// across nodes, one for an all-to-all or message. An all-reduce inside a node may be read directly instead (Link);
// the faster of the two is taken.
//
// More bytes and slower links never make it faster.
#pragma once

#include <string>

#include "collectives/types.h"
#include "emu/timeline/hardware_model.h"

namespace shardproof {

/// Of a group: how its ranks lie on nodes.
struct GroupShape {
  int ranks = 1;
  int nodes = 1;
  int per_node = 1;  ///< the most on one node
  bool operator==(const GroupShape&) const = default;
};

struct CollectiveTime {
  double alpha = 0;
  double inside = 0;  ///< seconds of the links inside a node; across likewise
  double across = 0;
  double seconds() const { return alpha + (inside > across ? inside : across); }
};

/// `wire` as above, of the rank with the most. A group of one takes no time.
CollectiveTime collective_time(const HardwareModel& hardware, const GroupShape& group, Operation operation,
                               double wire);
/// The same by NCCL's ring alone, without reading directly.
CollectiveTime ring_time(const HardwareModel& hardware, const GroupShape& group, Operation operation, double wire);

/// "4.7 us + 1.835 MB at 350 GB/s = 9.9 us", for --explain.
std::string describe(const HardwareModel& hardware, const GroupShape& group, Operation operation, double wire);

}  // namespace shardproof
