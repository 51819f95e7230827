// Which slots the rows of a dispatch are.
//
// A slot is one choice of one token: token * top_k + choice. An expert's rank has rows in the order of their arrival
// and cannot tell whose they are; to hold what it makes of them to the reference, the ranks of a run whose inner taps
// are taken post here what they are about to send, beside the program, which does not need it.
//
//   ranks 0 and 1 of ep 2 send   {5, 0 | 2} and {9 | 7, 8}   to ranks 0 | 1
//   arriving at rank 1           {2, 7, 8}
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "emu/plan/mesh.h"

namespace shardproof {

/// Safe to use from several ranks at once.
class SlotBoard {
 public:
  explicit SlotBoard(const Parallel& parallel) : mesh_(parallel) {}

  struct Dispatch {
    int layer = 0;
    std::int64_t microbatch = 0;
  };

  /// What a rank sends: its slots in order, to_each[o] of them to the o-th rank of its ep group. Posted before the rows
  /// are on their way.
  void post(int rank, const Dispatch& dispatch, std::vector<std::int64_t> slots, std::vector<std::int64_t> to_each);

  /// The slots of the rows that arrived at a rank over ep, in order of their senders; of one that did not post, none.
  std::vector<std::int64_t> arriving(int rank, const Dispatch& dispatch) const;
  /// Those of every rank of its etp group, one after another.
  std::vector<std::int64_t> arriving_over_etp(int rank, const Dispatch& dispatch) const;

 private:
  struct Posted {
    std::vector<std::int64_t> slots;
    std::vector<std::int64_t> to_each;
  };
  using Key = std::tuple<int, std::int64_t, int>;  // layer, microbatch, rank

  Mesh mesh_;
  mutable std::mutex mutex_;
  std::map<Key, Posted> posted_;
};

}  // namespace shardproof
