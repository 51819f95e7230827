#include "collectives/communicator.h"

#include <stdexcept>

#include "collectives/internal/state.h"

namespace shardproof {

const Group& Communicator::group() const {
  if (state_ == nullptr) throw std::logic_error("a communicator that belongs to no world was used");
  return state_->group;
}

PendingCall Communicator::exchange(Exchange messages, SourceLocation where) const {
  const std::span<const Send> sends = messages.sends;
  const std::span<const Recv> recvs = messages.recvs;
  internal::CallDetails details;
  if (!sends.empty()) details.sends = std::span(&sends.front().part, sends.size());
  if (!recvs.empty()) details.recvs = std::span(&recvs.front().part, recvs.size());
  return make(Operation::exchange, std::span<const float>(), std::span<float>(), kSumInRankOrder, where, details);
}

}  // namespace shardproof
