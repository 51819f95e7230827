// What makes a call right by itself, and calls right together.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "collectives/errors.h"
#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

[[noreturn]] void refuse(const Call& call, const std::string& problem) {
  throw InvalidCall(describe(call), problem);
}

// Never wraps around: counts that no buffer could hold do not add up to one that is there.
std::size_t total(std::span<const std::size_t> counts) {
  std::size_t sum = 0;
  for (const std::size_t count : counts) {
    if (__builtin_add_overflow(sum, count, &sum)) return std::numeric_limits<std::size_t>::max();
  }
  return sum;
}

Interval interval(const void* data, std::size_t count, ElementType type, std::size_t owner, Access access) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + count * size_of(type), owner, access};
}

void check_sizes(const Call& call) {
  const auto ranks = static_cast<std::size_t>(call.group->size());
  const auto rank = static_cast<std::size_t>(to_int(call.rank));
  const auto equal = [&](std::size_t have, std::size_t want, const char* what) {
    if (have != want) refuse(call, fmt::format("{} has {} elements, not {}", what, have, want));
  };
  if (call.counts_given && call.counts.size() != ranks) {
    refuse(call, fmt::format("{} counts are given for {} ranks", call.counts.size(), ranks));
  }
  switch (call.operation) {
    case Operation::all_reduce:
      return equal(call.out_count, call.in_count, "the output");
    case Operation::reduce:
      if (to_int(call.rank) == call.root) equal(call.out_count, call.in_count, "the root's output");
      return;
    case Operation::all_gather:
      if (!call.counts_given) return equal(call.out_count, ranks * call.in_count, "the output");
      equal(call.in_count, call.counts[rank], "the input");
      return equal(call.out_count, total(call.counts), "the output");
    case Operation::reduce_scatter:
      if (!call.counts_given) return equal(call.in_count, ranks * call.out_count, "the input");
      equal(call.out_count, call.counts[rank], "the output");
      return equal(call.in_count, total(call.counts), "the input");
    case Operation::all_to_all:
      if (!call.counts_given) {
        if (call.in_count % ranks != 0) {
          refuse(call, fmt::format("the input's {} elements are not divisible by {} ranks", call.in_count, ranks));
        }
        return equal(call.out_count, call.in_count, "the output");
      }
      if (call.recv_counts.size() != ranks) {
        refuse(call, fmt::format("{} receive counts are given for {} ranks", call.recv_counts.size(), ranks));
      }
      equal(call.in_count, total(call.counts), "the input");
      return equal(call.out_count, total(call.recv_counts), "the output");
    default:
      return;
  }
}

// The one place where the input may lie in the output, or the output in the input.
bool in_place(const Call& call) {
  const auto before = [&](std::size_t each) {
    const auto rank = static_cast<std::size_t>(to_int(call.rank));
    return size_of(call.type) * (call.counts_given ? total(call.counts.first(rank)) : rank * each);
  };
  switch (call.operation) {
    case Operation::all_reduce:
    case Operation::reduce:
    case Operation::broadcast:
      return call.in == call.out;
    case Operation::all_gather:
      return call.in == static_cast<const std::byte*>(call.out) + before(call.in_count);
    case Operation::reduce_scatter:
      return call.out == static_cast<const std::byte*>(call.in) + before(call.out_count);
    default:
      return false;
  }
}

void check_own_buffers(const Call& call) {
  if (call.in == nullptr || call.out == nullptr || in_place(call)) return;
  const Interval in = interval(call.in, call.in_count, call.type, 0, Access::read);
  const Interval out = interval(call.out, call.out_count, call.type, 0, Access::written);
  if (in.begin == in.end || out.begin == out.end || in.end <= out.begin || out.end <= in.begin) return;
  if (call.operation == Operation::reduce && to_int(call.rank) != call.root) return;
  refuse(call, "the output overlaps the input where this operation forbids it");
}

void check_algorithm(const Call& call) {
  const Algorithm algorithm = call.options.algorithm;
  if (call.options.gpus_per_node < 1) refuse(call, "gpus_per_node is not positive");
  const bool has =
      call.operation == Operation::all_reduce || algorithm == Algorithm::rank_order ||
      (call.operation == Operation::all_to_all ? algorithm == Algorithm::hierarchical : algorithm == Algorithm::ring);
  if (!has) refuse(call, fmt::format("{} has no algorithm {}", to_string(call.operation), to_string(algorithm)));
}

void check_parts(const Call& call) {
  std::vector<Interval> intervals;
  for (const std::span<const Part> parts : {call.sends, call.recvs}) {
    for (const Part& part : parts) {
      if (to_int(part.peer) < 0 || to_int(part.peer) >= call.group->size()) {
        refuse(call, fmt::format("rank {} of the group does not exist", to_int(part.peer)));
      }
      intervals.push_back(interval(part.is_send ? part.source : part.target, part.count, part.type, intervals.size(),
                                   part.is_send ? Access::read : Access::written));
    }
  }
  if (find_overlap(intervals).first >= 0) refuse(call, "two messages of the exchange overlap in memory");
}

std::string requested(const CallInfo& call) {
  return fmt::format("{} {} {}{}{}", call.operation_name(), call.elements, to_string(call.type),
                     call.peer >= 0 ? fmt::format(" root {}", call.peer) : "",
                     call.operation == Operation::all_reduce || call.operation == Operation::reduce_scatter ||
                             call.operation == Operation::reduce
                         ? fmt::format(" {}", to_string(call.reduction))
                         : "");
}

bool same_rounding(const Rounding& a, const Rounding& b) {
  return a.bytes == b.bytes && a.round_float == b.round_float && a.round_double == b.round_double &&
         (a.name == b.name || std::strcmp(a.name, b.name) == 0);
}

bool reduces(Operation operation) {
  return operation == Operation::all_reduce || operation == Operation::reduce_scatter || operation == Operation::reduce;
}

std::optional<MismatchKind> difference(const Call& a, const Call& b) {
  if (a.operation != b.operation || a.counts_given != b.counts_given) return MismatchKind::operation;
  if (a.operation == Operation::barrier) return std::nullopt;
  if (a.type != b.type) return MismatchKind::type;
  if (a.root != b.root) return MismatchKind::root;
  if (a.options.algorithm != b.options.algorithm) return MismatchKind::algorithm;
  if (a.options.algorithm == Algorithm::hierarchical && a.options.gpus_per_node != b.options.gpus_per_node) {
    return MismatchKind::algorithm;
  }
  if (reduces(a.operation)) {
    if (a.options.reduction != b.options.reduction) return MismatchKind::reduction;
    if (!same_rounding(a.options.wire, b.options.wire) || !same_rounding(a.options.accumulate, b.options.accumulate)) {
      return MismatchKind::format;
    }
  }
  if (a.operation == Operation::all_to_all && a.counts_given) return std::nullopt;  // by edge, when all are there
  if (a.counts_given) {
    return std::equal(a.counts.begin(), a.counts.end(), b.counts.begin()) ? std::nullopt
                                                                          : std::optional(MismatchKind::count);
  }
  return a.in_count == b.in_count ? std::nullopt : std::optional(MismatchKind::count);
}

std::string difference_text(MismatchKind kind, const Call& a_call, const Call& b_call, std::size_t others) {
  const CallInfo a = describe(a_call);
  const CallInfo b = describe(b_call);
  const auto sentence = [&](const std::string& what, const std::string& mine, const std::string& theirs) {
    if (others == 1) {
      return fmt::format("in {}, rank {} {} {} where rank {} has {}", a.group, to_int(a.rank), what, mine,
                         to_int(b.rank), theirs);
    }
    return fmt::format("in {}, rank {} {} {} where {} other ranks (rank {} for one) have {}", a.group, to_int(a.rank),
                       what, mine, others, to_int(b.rank), theirs);
  };
  const auto text = [](std::string_view view) { return std::string(view); };
  switch (kind) {
    case MismatchKind::operation:
      if (a.operation_name() != b.operation_name()) return sentence("calls", a.operation_name(), b.operation_name());
      return sentence("calls", fmt::format("{} as its number {} there", a.operation_name(), a.sequence),
                      std::to_string(b.sequence));
    case MismatchKind::type:
      return sentence("has element type", text(to_string(a.type)), text(to_string(b.type)));
    case MismatchKind::count:
      if (a.counts_given) {
        const auto differ = std::mismatch(a_call.counts.begin(), a_call.counts.end(), b_call.counts.begin());
        const auto part = static_cast<int>(differ.first - a_call.counts.begin());
        return sentence(fmt::format("gives, for rank {}, count", to_int(a_call.group->group.global(GroupRank{part}))),
                        std::to_string(*differ.first), std::to_string(*differ.second));
      }
      return sentence("has count", std::to_string(a.elements), std::to_string(b.elements));
    case MismatchKind::root:
      return sentence("names root", fmt::format("rank {}", a.peer), fmt::format("rank {}", b.peer));
    case MismatchKind::reduction:
      return sentence("has reduction", text(to_string(a.reduction)), text(to_string(b.reduction)));
    case MismatchKind::algorithm:
      if (a.algorithm == b.algorithm) {
        return sentence("has nodes of", fmt::format("gpus_per_node {}", a.gpus_per_node),
                        fmt::format("gpus_per_node {}", b.gpus_per_node));
      }
      return sentence("has algorithm", text(to_string(a.algorithm)), text(to_string(b.algorithm)));
    case MismatchKind::format:
      return sentence("has wire and accumulation format", fmt::format("{}/{}", a.wire, a.accumulate),
                      fmt::format("{}/{}", b.wire, b.accumulate));
    default:
      return requested(a) + " against " + requested(b);
  }
}

void check_edges(const GroupState& state) {
  const std::size_t ranks = state.members.size();
  for (std::size_t to = 0; to < ranks; ++to) {
    const Call& receiver = state.call(to);
    for (std::size_t from = 0; from < ranks; ++from) {
      const Call& sender = state.call(from);
      if (sender.counts[to] == receiver.recv_counts[from]) continue;
      const CallInfo send = describe(sender);
      const CallInfo recv = describe(receiver);
      throw CollectiveMismatch(
          MismatchKind::edge, send, recv,
          fmt::format("in {}, rank {} sends {} elements to rank {}, which expects {} from it (edge send[{}->{}])",
                      send.group, to_int(send.rank), sender.counts[to], to_int(recv.rank), receiver.recv_counts[from],
                      from, to));
    }
  }
}

void check_overlap(GroupState& state) {
  std::vector<Interval>& intervals = state.movement.intervals;
  intervals.clear();
  for (std::size_t i = 0; i < state.members.size(); ++i) {
    const Call& call = state.call(i);
    if (is_forsaken(call)) continue;
    // An issued call works on copies: the rank's own buffers are meant.
    const void* in = call.issued ? static_cast<const Issued&>(call).own_in : call.in;
    const void* out = call.issued ? static_cast<const Issued&>(call).own_out : call.out;
    if (reads_input(call) && call.in_count != 0 && !(writes_output(call) && in == out)) {
      intervals.push_back(interval(in, call.in_count, call.type, i, Access::read));
    }
    if (writes_output(call) && call.out_count != 0) {
      intervals.push_back(interval(out, call.out_count, call.type, i, Access::written));
    }
  }
  // A loop calls with the same buffers again and again: what was right stays right.
  std::vector<Interval>& right = state.movement.checked_intervals;
  if (intervals == right) return;
  right = intervals;
  const Overlap overlap = find_overlap(intervals);
  if (overlap.first < 0) return;
  right.clear();
  const CallInfo first = describe(state.call(static_cast<std::size_t>(overlap.first)));
  const CallInfo second = describe(state.call(static_cast<std::size_t>(overlap.second)));
  throw CollectiveMismatch(MismatchKind::overlap, first, second,
                           fmt::format("in {}, buffers of rank {} and rank {} overlap in memory, and one is written",
                                       first.group, to_int(first.rank), to_int(second.rank)));
}

}  // namespace

void check(Call& call) {
  if (call.group == nullptr) throw std::logic_error("a communicator that belongs to no world was used");
  if (call.group->world->executor == nullptr) throw std::logic_error("a communicator was used outside World::run");
  const Member& member = call.group->members[static_cast<std::size_t>(to_int(call.rank))];
  call.sequence = is_point_to_point(call.operation) ? member.point_to_point : member.collectives;
  if (call.group->world->issues.load(std::memory_order_relaxed)) check_under_way(call);
  if (call.operation == Operation::exchange) return check_parts(call);
  if (is_point_to_point(call.operation) || call.operation == Operation::broadcast ||
      call.operation == Operation::reduce) {
    if (call.root < 0 || call.root >= call.group->size()) {
      refuse(call, fmt::format("rank {} of the group does not exist", call.root));
    }
  }
  if (is_point_to_point(call.operation)) {
    if (call.root == to_int(call.rank)) refuse(call, "a rank can send to itself only inside an exchange");
    return;
  }
  check_algorithm(call);
  check_sizes(call);
  check_own_buffers(call);
}

namespace {

// Also of calls of one number that only one of them has issued, and of calls that have come to one meeting with
// different numbers: a rank has issued its own earlier than the other.
std::optional<MismatchKind> mismatch(const Call& a, const Call& b) {
  return a.sequence != b.sequence || a.issued != b.issued ? MismatchKind::operation : difference(a, b);
}

void check_match(std::span<const Call* const> arrived) {
  for (std::size_t i = 1; i < arrived.size(); ++i) {
    const std::optional<MismatchKind> kind = mismatch(*arrived[0], *arrived[i]);
    if (!kind) continue;
    // Whoever has fewer on its side is shown first, as the odd one.
    const auto with = [&](const Call* call) {
      return static_cast<std::size_t>(
          std::count_if(arrived.begin(), arrived.end(), [&](const Call* other) { return !mismatch(*call, *other); }));
    };
    const std::size_t first_side = with(arrived[0]);
    const std::size_t second_side = with(arrived[i]);
    const bool first_is_odd = first_side < second_side;
    const Call& odd = first_is_odd ? *arrived[0] : *arrived[i];
    const Call& other = first_is_odd ? *arrived[i] : *arrived[0];
    throw CollectiveMismatch(*kind, describe(odd), describe(other),
                             difference_text(*kind, odd, other, first_is_odd ? second_side : first_side));
  }
}

// Those that have come to the meeting and wait there for others.
void append_arrived(const GroupState& meeting, std::vector<const Call*>& calls) {
  for (const Member& member : meeting.members) {
    if (member.call != nullptr && !has_ended(*member.call)) calls.push_back(member.call);
  }
}

}  // namespace

void check_outstanding(const GroupState& group) {
  std::vector<const Call*> calls;
  append_arrived(group, calls);
  for (const auto& [number, lane] : group.lanes) append_arrived(*lane, calls);
  std::stable_sort(calls.begin(), calls.end(), [](const Call* a, const Call* b) {
    return std::tuple(a->sequence, a->rank) < std::tuple(b->sequence, b->rank);
  });
  for (auto first = calls.begin(); first != calls.end();) {
    const auto end =
        std::find_if(first, calls.end(), [&](const Call* call) { return call->sequence != (*first)->sequence; });
    check_match({first, end});
    first = end;
  }
  const auto check_meeting = [&](const GroupState& meeting) {
    calls.clear();
    append_arrived(meeting, calls);
    check_match(calls);
  };
  check_meeting(group);
  for (const auto& [number, lane] : group.lanes) check_meeting(*lane);
}

void check_complete(GroupState& state) {
  const Call& first = state.call(0);
  bool differ = false;
  for (std::size_t i = 1; i < state.members.size() && !differ; ++i)
    differ = difference(first, state.call(i)).has_value();
  if (state.world->issues.load(std::memory_order_relaxed)) {
    for (const Member& member : state.members) differ = differ || member.call->sequence != first.sequence;
  }
  if (differ) {
    std::vector<const Call*> arrived;
    append_arrived(state, arrived);
    check_match(arrived);
  }
  if (first.operation == Operation::barrier) return;
  if (first.operation == Operation::all_to_all && first.counts_given) check_edges(state);
  if (state.world->options.check_overlap && state.members.size() > 1) check_overlap(state);
}

void check_message(const Call& send_call, const Part& send, const Call& recv_call, const Part& recv) {
  const bool fit = send.count == recv.count && send.type == recv.type;
  const void* source = send_call.issued ? static_cast<const Issued&>(send_call).own_in : send.source;
  const void* target = recv_call.issued ? static_cast<const Issued&>(recv_call).own_out : recv.target;
  const Interval from = interval(source, send.count, send.type, 0, Access::read);
  const Interval to = interval(target, recv.count, recv.type, 1, Access::written);
  const bool gone = is_forsaken(send_call) || is_forsaken(recv_call);
  const bool overlap = fit && !gone && send.count != 0 && from.begin < to.end && to.begin < from.end;
  if (fit && !overlap) return;
  const CallInfo first = describe(send_call, send);
  const CallInfo second = describe(recv_call, recv);
  if (overlap) {
    throw CollectiveMismatch(MismatchKind::overlap, first, second,
                             fmt::format("in {}, what rank {} sends and where rank {} receives it overlap in memory",
                                         first.group, to_int(first.rank), to_int(second.rank)));
  }
  throw CollectiveMismatch(
      MismatchKind::message, first, second,
      fmt::format("in {}, rank {} sends {} {} to rank {}, which expects {} {}", first.group, to_int(first.rank),
                  send.count, to_string(send.type), to_int(second.rank), recv.count, to_string(recv.type)));
}

CallInfo describe(const Call& call) {
  const Group& group = call.group->group;
  CallInfo info;
  info.rank = group.global(call.rank);
  info.operation = call.operation;
  info.counts_given = call.counts_given;
  info.issued = call.issued;
  info.group = group.name();
  info.group_size = group.size();
  info.sequence = call.sequence;
  info.type = call.type;
  info.elements = call.operation == Operation::recv ? call.out_count : call.in_count;
  if (call.root >= 0 && call.root < group.size()) info.peer = to_int(group.global(GroupRank{call.root}));
  info.reduction = call.options.reduction;
  info.algorithm = call.options.algorithm;
  info.gpus_per_node = call.options.gpus_per_node;
  info.wire = call.options.wire.name;
  info.accumulate = call.options.accumulate.name;
  info.tag = call.tag;
  info.where = call.where;
  return info;
}

CallInfo describe(const Call& call, const Part& part) {
  CallInfo info = describe(call);
  info.type = part.type;
  info.elements = part.count;
  info.peer = to_int(call.group->group.global(part.peer));
  return info;
}

}  // namespace shardproof::internal
