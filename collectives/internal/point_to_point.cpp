// Messages between two ranks: whoever comes second copies.
#include <algorithm>
#include <cstring>

#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

RankState& rank_state(const Call& call) {
  return call.group->world->rank(call.group->group.global(call.rank));
}

void resume_waiter(void* context, std::size_t) noexcept {
  std::coroutine_handle<>::from_address(context).resume();
}

// The message in the mailbox that this one matches, or null after this one has been put there.
Mailbox::Waiting match(Call& call, const Part& part) {
  GroupState& state = *call.group;
  std::call_once(state.mailboxes_made, [&] { state.mailboxes = std::make_unique<Mailbox[]>(state.members.size()); });
  Mailbox& mailbox = state.mailboxes[static_cast<std::size_t>(to_int(part.is_send ? part.peer : call.rank))];
  const std::lock_guard lock(mailbox.mutex);
  auto& waiting = part.is_send ? mailbox.recvs : mailbox.sends;
  const auto found = std::find_if(waiting.begin(), waiting.end(), [&](const Mailbox::Waiting& other) {
    return part.is_send ? other.part->peer == call.rank : other.call->rank == part.peer;
  });
  if (found == waiting.end()) {
    (part.is_send ? mailbox.sends : mailbox.recvs).push_back({&call, &part});
    return {nullptr, nullptr};
  }
  const Mailbox::Waiting other = *found;
  waiting.erase(found);
  return other;
}

// True if the message has been delivered.
bool deliver(Call& call, const Part& part, const Mailbox::Waiting& other) {
  const Part& send = part.is_send ? part : *other.part;
  const Part& recv = part.is_send ? *other.part : part;
  const Call& send_call = part.is_send ? call : *other.call;
  const Call& recv_call = part.is_send ? *other.call : call;
  try {
    check_message(send_call, send, recv_call, recv);
  } catch (...) {
    const Group& group = call.group->group;
    call.group->world->fail(std::min(group.global(send_call.rank), group.global(recv_call.rank)),
                            std::current_exception());
    return false;
  }
  if (send.count != 0) std::memcpy(recv.target, send.source, send.count * size_of(send.type));
  return true;
}

// Returns how many messages of this call were delivered at once.
int post_part(Call& call, const Part& part) {
  const Mailbox::Waiting other = match(call, part);
  if (other.call == nullptr || !deliver(call, part, other)) return 0;
  if (rank_state(*other.call).messages_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    call.group->world->executor->post({resume_waiter, other.call->waiter.address(), 1});
  }
  return 1;
}

}  // namespace

bool arrive_point_to_point(Call& call) {
  RankState& rank = rank_state(call);
  if (call.operation != Operation::exchange) {
    const bool is_send = call.operation == Operation::send;
    rank.part = {is_send, call.type, is_send ? call.in_count : call.out_count, call.in, call.out, GroupRank{call.root}};
    (is_send ? call.sends : call.recvs) = {&rank.part, 1};
  }
  const int messages = static_cast<int>(call.sends.size() + call.recvs.size());
  // One more than there are messages, so that nobody resumes this rank before it is done here.
  rank.messages_left.store(messages + 1, std::memory_order_relaxed);
  int delivered = 0;
  for (const Part& part : call.sends) delivered += post_part(call, part);
  for (const Part& part : call.recvs) delivered += post_part(call, part);
  // Unless this completes it, another thread may resume the rank from here on, and `call` with it be gone.
  return rank.messages_left.fetch_sub(delivered + 1, std::memory_order_acq_rel) != delivered + 1;
}

}  // namespace shardproof::internal
