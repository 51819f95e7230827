// Messages between two ranks: whoever comes second copies. A rank may have any number under way.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

std::atomic_ref<int> messages_left(Call& call) {
  return std::atomic_ref(call.messages_left);
}

void resume_waiter(void* context, std::size_t) noexcept {
  std::coroutine_handle<>::from_address(context).resume();
}

void end_issued(void* context, std::size_t) noexcept {
  end(*static_cast<Issued*>(context));
}

// The message in the mailbox that this one matches, or null after this one has been put there.
Mailbox::Waiting match(Call& call, const Part& part) {
  GroupState& state = *call.group;
  std::call_once(state.mailboxes_made, [&] { state.mailboxes = std::make_unique<Mailbox[]>(state.members.size()); });
  Mailbox& mailbox = state.mailboxes[static_cast<std::size_t>(to_int(part.is_send ? part.peer : call.rank))];
  const std::lock_guard lock(mailbox.mutex);
  auto& waiting = part.is_send ? mailbox.recvs : mailbox.sends;
  const auto found = std::find_if(waiting.begin(), waiting.end(), [&](const Mailbox::Waiting& other) {
    return part.is_send ? other.part.peer == call.rank : other.call->rank == part.peer;
  });
  if (found == waiting.end()) {
    (part.is_send ? mailbox.sends : mailbox.recvs).push_back({&call, part});
    return {nullptr, {}};
  }
  const Mailbox::Waiting other = *found;
  waiting.erase(found);
  return other;
}

// True if the message has been delivered.
bool deliver(Call& call, const Part& part, const Mailbox::Waiting& other) {
  const Part& send = part.is_send ? part : other.part;
  const Part& recv = part.is_send ? other.part : part;
  const Call& send_call = part.is_send ? call : *other.call;
  const Call& recv_call = part.is_send ? *other.call : call;
  try {
    check_message(send_call, send, recv_call, recv);
  } catch (...) {
    const Group& group = call.group->group;
    const Call& lower = group.global(send_call.rank) < group.global(recv_call.rank) ? send_call : recv_call;
    call.group->world->fail(group.global(lower.rank), lower, std::current_exception());
    return false;
  }
  if (send.count != 0) std::memcpy(recv.target, send.source, send.count * size_of(send.type));
  return true;
}

// Returns how many messages of this call were delivered at once.
int post_part(Call& call, const Part& part) {
  const Mailbox::Waiting other = match(call, part);
  if (other.call == nullptr || !deliver(call, part, other)) return 0;
  if (messages_left(*other.call).fetch_sub(1, std::memory_order_acq_rel) == 1) {
    if (other.call->issued) {
      call.group->world->executor->post({end_issued, static_cast<Issued*>(other.call), 1});
    } else {
      call.group->world->executor->post({resume_waiter, other.call->waiter.address(), 1});
    }
  }
  return 1;
}

}  // namespace

bool arrive_point_to_point(Call& call) {
  const bool single = call.operation != Operation::exchange;
  const int messages = single ? 1 : static_cast<int>(call.sends.size() + call.recvs.size());
  // One more than there are messages, so that nobody resumes this rank before it is done here.
  messages_left(call).store(messages + 1, std::memory_order_relaxed);
  int delivered = 0;
  if (single) {
    const bool is_send = call.operation == Operation::send;
    delivered = post_part(
        call, {is_send, call.type, is_send ? call.in_count : call.out_count, call.in, call.out, GroupRank{call.root}});
  }
  for (const Part& part : call.sends) delivered += post_part(call, part);
  for (const Part& part : call.recvs) delivered += post_part(call, part);
  // Unless this completes it, another thread may resume the rank from here on, and `call` with it be gone.
  return messages_left(call).fetch_sub(delivered + 1, std::memory_order_acq_rel) != delivered + 1;
}

}  // namespace shardproof::internal
