#include "collectives/exchange_handle.h"

namespace shardproof {

ExchangeHandle::ExchangeHandle(const Communicator& group, Exchange messages, SourceLocation where) {
  calls_.reserve(messages.sends.size() + messages.recvs.size());
  const auto issue = [&](const internal::Part& part) {
    calls_.emplace_back(group.call({.operation = part.is_send ? Operation::send : Operation::recv,
                                    .type = part.type,
                                    .in = part.is_send ? part.source : nullptr,
                                    .in_count = part.is_send ? part.count : 0,
                                    .out = part.is_send ? nullptr : part.target,
                                    .out_count = part.is_send ? 0 : part.count,
                                    .where = where,
                                    .details = {.root = to_int(part.peer)}}));
  };
  for (const Send& send : messages.sends) issue(send.part);
  for (const Recv& recv : messages.recvs) issue(recv.part);
}

Task<> ExchangeHandle::wait_for_all(std::vector<CallHandle>& calls) {
  for (CallHandle& call : calls) co_await call;
}

}  // namespace shardproof
