#include "emu/judge/stall.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string_view>

namespace shardproof {
namespace {

/// The calls stand at the same place of the program, and are for the same there.
bool same_place(const CallInfo& a, const CallInfo& b) {
  return a.tag == b.tag && a.where.line() == b.where.line() &&
         std::string_view(a.where.file_name()) == b.where.file_name();
}

/// A message that is not what is awaited: of another microbatch, where the program says which.
Cause message_cause(const CollectiveMismatch& error, const std::string& text) {
  const std::int32_t first = error.first().tag.microbatch, second = error.second().tag.microbatch;
  if (first < 0 || second < 0 || first == second) return {"call_arguments", text};
  return {"call_sequence",
          fmt::format("the call of rank {} is for microbatch {}, that of rank {} for microbatch {}: one "
                      "before them is left out, or they run in another order; {}",
                      to_int(error.first().rank), first, to_int(error.second().rank), second, text)};
}

Cause mismatch_cause(const CollectiveMismatch& error) {
  const std::string text =
      fmt::format("{} and {}: {}", error.first().to_string(), error.second().to_string(), error.problem());
  if (error.kind() == MismatchKind::edge) return {"split_sizes", text};
  if (error.kind() == MismatchKind::message) return message_cause(error, text);
  if (error.kind() == MismatchKind::operation || !same_place(error.first(), error.second())) {
    return {"call_sequence", text};
  }
  return {"call_arguments", text};
}

Cause deadlock_cause(const DeadlockError& error) {
  const WaitGraph& graph = error.graph();
  if (graph.empty()) return {"call_sequence", "ranks wait outside of any collective"};
  const auto rendezvous = std::ranges::find_if(graph.rendezvous, [&](const Rendezvous& r) {
    return std::ranges::any_of(r.absent, [](const AbsentRank& rank) { return rank.why != Absence::waiting; });
  });
  const Rendezvous& shown = rendezvous != graph.rendezvous.end() ? *rendezvous : graph.rendezvous.front();
  std::vector<int> absent;
  for (const AbsentRank& rank : shown.absent) absent.push_back(to_int(rank.rank));
  const std::string text =
      fmt::format("{} #{} in {} waits for rank {}{}", to_string(shown.operation), shown.sequence, shown.group,
                  fmt::join(absent, ", "), graph.causes.empty() ? "" : ": " + graph.causes.front());
  return {is_point_to_point(shown.operation) ? "message_lost" : "call_sequence", text};
}

}  // namespace

std::vector<int> stuck_ranks(const Stall& stall) {
  std::set<int> ranks;
  for (const CallInfo& call : stall.calls) ranks.insert(to_int(call.rank));
  if (stall.graph) {
    for (const Rendezvous& rendezvous : stall.graph->rendezvous) {
      for (const CallInfo& call : rendezvous.arrived) ranks.insert(to_int(call.rank));
    }
  }
  return {ranks.begin(), ranks.end()};
}

const char* to_string(StallKind kind) {
  if (kind == StallKind::no_progress) return "no_progress";
  return kind == StallKind::deadlock ? "deadlock" : "collective_mismatch";
}

Stall stall_of(const CollectiveError& error) {
  const std::string text = error.what();
  if (const auto* deadlock = dynamic_cast<const DeadlockError*>(&error)) {
    return {.kind = StallKind::deadlock,
            .text = text,
            .graph = deadlock->graph(),
            .calls = {},
            .cause = deadlock_cause(*deadlock)};
  }
  if (const auto* waited = dynamic_cast<const NoProgressError*>(&error)) {
    return {.kind = StallKind::no_progress,
            .text = text,
            .graph = waited->graph(),
            .calls = {},
            .cause = {"no_progress", text.substr(0, text.find('\n'))}};
  }
  Stall stall{.kind = StallKind::collective_mismatch, .text = text, .graph = {}, .calls = {}, .cause = {}};
  if (const auto* mismatch = dynamic_cast<const CollectiveMismatch*>(&error)) {
    stall.calls = {mismatch->first(), mismatch->second()};
    stall.cause = mismatch_cause(*mismatch);
    return stall;
  }
  if (const auto* invalid = dynamic_cast<const InvalidCall*>(&error)) stall.calls = {invalid->call()};
  stall.cause = {"invalid_call", text.substr(0, text.find('\n'))};
  return stall;
}

}  // namespace shardproof
