#include "collectives/errors.h"

#include <fmt/format.h>

#include <array>

namespace shardproof {

namespace {

std::string waiting_ranks(const WaitGraph& graph) {
  return graph.empty() ? "" : "\n" + graph.to_text();
}

}  // namespace

std::string_view to_string(MismatchKind kind) {
  constexpr std::array<std::string_view, 10> kNames{"operation", "type",   "count", "root",    "reduction",
                                                    "algorithm", "format", "edge",  "overlap", "message"};
  return kNames[static_cast<std::size_t>(kind)];
}

InvalidCall::InvalidCall(CallInfo call, const std::string& problem)
    : CollectiveError(fmt::format("invalid call: {}\n  {}", problem, call.to_string())), call_(std::move(call)) {}

CollectiveMismatch::CollectiveMismatch(MismatchKind kind, CallInfo first, CallInfo second, std::string problem)
    : CollectiveError(fmt::format("collective mismatch ({}): {}\n  {}\n  {}", shardproof::to_string(kind), problem,
                                  first.to_string(), second.to_string())),
      kind_(kind),
      first_(std::move(first)),
      second_(std::move(second)),
      problem_(std::move(problem)) {}

DeadlockError::DeadlockError(WaitGraph graph)
    : CollectiveError("deadlock: no rank can run any more\n" + graph.to_text()), graph_(std::move(graph)) {}

RankError::RankError(GlobalRank rank, const std::string& what, WaitGraph graph)
    : std::runtime_error(fmt::format("rank {} failed: {}{}", to_int(rank), what, waiting_ranks(graph))),
      rank_(rank),
      graph_(std::move(graph)) {}

}  // namespace shardproof
