#include "collectives/errors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

namespace shardproof {

namespace {

std::string waiting_ranks(const WaitGraph& graph) {
  return graph.empty() ? "" : "\n" + graph.to_text();
}

std::string rank_list(const std::vector<GlobalRank>& ranks) {
  std::vector<int> numbers;
  for (const GlobalRank rank : ranks) numbers.push_back(to_int(rank));
  return fmt::format("{}", fmt::join(numbers, ", "));
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

NoProgressError::NoProgressError(WaitGraph graph, std::vector<GlobalRank> outside)
    : CollectiveError(fmt::format("no progress: rank {} {} code of {} own and {} neither called nor returned{}",
                                  rank_list(outside), outside.size() == 1 ? "runs" : "run",
                                  outside.size() == 1 ? "its" : "their", outside.size() == 1 ? "has" : "have",
                                  waiting_ranks(graph))),
      graph_(std::move(graph)),
      outside_(std::move(outside)) {}

RankError::RankError(GlobalRank rank, const std::string& what, WaitGraph graph)
    : std::runtime_error(fmt::format("rank {} failed: {}{}", to_int(rank), what, waiting_ranks(graph))),
      rank_(rank),
      graph_(std::move(graph)) {}

}  // namespace shardproof
