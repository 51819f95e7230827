// Messages of an exchange, under way together while their rank does something else.
//
//   ExchangeHandle hop = iexchange(rank.cp(), {sends, recvs});
//   ...                                                            // compute with what is here already
//   co_await hop;                                                  // what was received is there from here on
//
// Each message is one of isend or irecv (call_handle.h), with the rules of these: two between the same ranks in the
// same direction match in order, whether the other side sends, receives, or exchanges.
#pragma once

#include <vector>

#include "collectives/call_handle.h"
#include "collectives/communicator.h"
#include "collectives/task.h"

namespace shardproof {

class [[nodiscard]] ExchangeHandle {
 public:
  /// Holds no message.
  ExchangeHandle() = default;
  /// Issues them. The buffers live until the handle is awaited; what lists them need not.
  ExchangeHandle(const Communicator& group, Exchange messages, SourceLocation where);

  /// Once. Of a temporary or of a handle that lives until then.
  auto operator co_await() {
    waiting_ = wait_for_all(calls_);
    return waiting_.operator co_await();
  }

 private:
  static Task<> wait_for_all(std::vector<CallHandle>& calls);

  std::vector<CallHandle> calls_;
  Task<> waiting_;
};

inline ExchangeHandle iexchange(const Communicator& group, Exchange messages,
                                SourceLocation where = SourceLocation::current()) {
  return {group, messages, where};
}

}  // namespace shardproof
