// Who waits for whom when a run can go no further: as data and as text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/call.h"

namespace shardproof {

/// Why a rank has not come to a rendezvous.
enum class Absence : std::uint8_t {
  waiting,   ///< it waits elsewhere, see `at`
  finished,  ///< its program has ended
  failed,    ///< its program has thrown
  outside    ///< it is suspended, but not in a collective
};

struct AbsentRank {
  GlobalRank rank{};
  Absence why{};
  int at = -1;              ///< index of the (first) rendezvous where it waits; -1 if none
  std::uint64_t calls = 0;  ///< collectives (or point-to-point calls) that it has made in the group
};

/// A collective, or a message between two ranks, that some of its ranks have reached and others have not.
struct Rendezvous {
  std::string group;           ///< "tp[3]"
  Operation operation{};       ///< of the first arrived call
  std::uint64_t sequence = 0;  ///< how many collectives (or point-to-point calls) its ranks made in the group before
  std::vector<CallInfo> arrived;
  std::vector<CallInfo> issued;  ///< have come too, but their ranks do not wait: the handle is not awaited
  std::vector<AbsentRank> absent;
};

/// Every arrived rank of a rendezvous waits for every absent one.
struct WaitGraph {
  std::vector<Rendezvous> rendezvous;
  std::vector<GlobalRank> cycle;    ///< each waits for the next, the last for the first; empty if there is no cycle
  std::vector<std::string> causes;  ///< sentences that say what is wrong, most telling first

  bool empty() const { return rendezvous.empty(); }
  std::string to_text() const;
  std::string to_dot() const;
};

}  // namespace shardproof
