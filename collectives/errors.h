// What can go wrong in a run, each with its ranks, calls and places.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives/call.h"
#include "collectives/wait_graph.h"

namespace shardproof {

/// Base of the errors that name calls. `what()` is the whole text.
class CollectiveError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A call that is wrong by itself: sizes that do not fit each other, a root outside the group, overlapping buffers.
class InvalidCall : public CollectiveError {
 public:
  InvalidCall(CallInfo call, const std::string& problem);
  const CallInfo& call() const { return call_; }

 private:
  CallInfo call_;
};

/// What two calls of one rendezvous disagree on.
enum class MismatchKind : std::uint8_t {
  operation,
  type,
  count,
  root,
  reduction,
  algorithm,
  format,   ///< wire or accumulation format
  edge,     ///< all_to_all: what one rank sends is not what the other expects
  overlap,  ///< one rank's output lies over another rank's buffer
  message   ///< point-to-point: type or count of a message
};

std::string_view to_string(MismatchKind kind);

/// Two ranks' calls of one rendezvous that do not match.
class CollectiveMismatch : public CollectiveError {
 public:
  CollectiveMismatch(MismatchKind kind, CallInfo first, CallInfo second, std::string problem);
  MismatchKind kind() const { return kind_; }
  const CallInfo& first() const { return first_; }
  const CallInfo& second() const { return second_; }
  /// One sentence that says what is wrong.
  const std::string& problem() const { return problem_; }

 private:
  MismatchKind kind_;
  CallInfo first_;
  CallInfo second_;
  std::string problem_;
};

/// No rank can ever run again, and some have not finished.
class DeadlockError : public CollectiveError {
 public:
  explicit DeadlockError(WaitGraph graph);
  const WaitGraph& graph() const { return graph_; }

 private:
  WaitGraph graph_;
};

/// Ranks have not finished, and for as long as the run was to wait none of them called or returned: those that run code
/// of their own may wait there for ever, or be slow. No proof, unlike DeadlockError.
class NoProgressError : public CollectiveError {
 public:
  NoProgressError(WaitGraph graph, std::vector<GlobalRank> outside);
  /// Who waits for whom among the ranks that are in a call.
  const WaitGraph& graph() const { return graph_; }
  /// The ranks that run code of their own.
  const std::vector<GlobalRank>& outside() const { return outside_; }

 private:
  WaitGraph graph_;
  std::vector<GlobalRank> outside_;
};

/// A rank's program threw something that is not a CollectiveError; the original is nested
/// (std::rethrow_if_nested, or rethrow_nested()).
class RankError : public std::runtime_error, public std::nested_exception {
 public:
  /// Inside a handler of the original exception.
  RankError(GlobalRank rank, const std::string& what, WaitGraph graph);
  GlobalRank rank() const { return rank_; }
  /// The ranks that the failed one left waiting.
  const WaitGraph& graph() const { return graph_; }

 private:
  GlobalRank rank_;
  WaitGraph graph_;
};

}  // namespace shardproof
