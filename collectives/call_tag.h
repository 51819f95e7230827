// What a call is for, in its caller's own numbers.
#pragma once

#include <cstdint>

namespace shardproof {

/// Put on a call by Communicator::tagged, and handed through unread: to hooks (Call), records, errors and wait-for
/// graphs. Collectives know no models; what an operation, a layer, a microbatch or a tensor is, and which number it
/// has, is the caller's business. -1: not said. Tags have no part in matching: calls that differ in nothing else are
/// one collective.
struct CallTag {
  std::int32_t op = -1;
  std::int32_t layer = -1;
  std::int32_t microbatch = -1;
  std::int32_t tensor = -1;

  bool operator==(const CallTag&) const = default;
};

}  // namespace shardproof
