// Mutations: known sharding bugs, injected into a run one at a time, to measure what the verifier catches and names.
//
// A kind is one bug of the catalogue; an instance is that bug at one place of one plan: a layer, a rank or a group, a
// microbatch. Faults enter through FaultInjector (emu/run/fault.h) only: the program knows nothing of them. Each
// instance says what it should lead to: the first wrong tap (or calls that never complete), and the cause that the
// diagnosis should name. The diagnosis never sees the instance.
//
// Two classes, each with a score of its own. *Sharding* bugs run in `exact`, or in a float format where that is asked
// for; *rounding* bugs in float formats: there the algebra is right, and something is rounded more often or to a
// narrower format than the plan's format says. In a float format the steps of an op are taps too: the first wrong one
// may be a step of the op that the instance names.
//
// A mutant that is not detected is *equivalent* when every rank tapped the very bits that it taps in a healthy run,
// which is decided without collector or judge (raw_bits.h), and its kind says that it may be for such a plan; else it
// is missed. An inconclusive verdict detects nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/expected.h"
#include "emu/judge/report.h"
#include "emu/judge/verify.h"
#include "emu/plan/plan.h"
#include "emu/plan/runnable.h"
#include "emu/run/fault.h"

namespace shardproof {

struct Mutation {
  std::string kind;
  int layer = -1;          ///< -1: outside the layers, or all of them
  std::vector<int> ranks;  ///< where it is injected; empty: on all
  std::string group;       ///< the axis of the group it is about, if any
  int microbatch = -1;     ///< -1: all
  /// The first wrong tap; empty when calls do not match or ranks wait for ever.
  std::string tap;
  ops::Format format = ops::Format::exact;  ///< that it is run in
  bool may_clash = false;                   ///< calls may not fit each other, depending on counts: as right as the tap
  std::vector<std::string> causes;          ///< names that are right (diagnose.h)
  std::function<std::unique_ptr<FaultInjector>()> make;
};

/// A plan, and the experts that its tokens choose in each layer, [tokens, top_k]: a fault is injected where there is
/// something that can go wrong.
struct MutablePlan : Plan {
  MutablePlan(const Plan& plan, const ExpectedTaps& expected);
  RoutingReplay choices;
};

enum class MutationClass { sharding, rounding };
/// "sharding", "rounding".
const char* to_string(MutationClass of);

struct MutationKind {
  std::string_view name;
  std::string_view description;
  /// Its instances for a valid plan, at most `limit` (in each format, of a rounding bug), at places as different as
  /// there are.
  std::vector<Mutation> (*instances)(const MutablePlan& plan, std::size_t limit);
  MutationClass of = MutationClass::sharding;
  /// Whether an instance may leave every bit as it is for such a plan; null: never.
  bool (*may_be_equivalent)(const Plan& plan) = nullptr;
};

/// Every kind, in order of the program.
std::span<const MutationKind> mutation_kinds();

/// What came of one mutation.
struct MutationResult {
  enum class Outcome { detected, equivalent, missed };
  Mutation mutation;
  MutationClass of = MutationClass::sharding;
  Outcome outcome = Outcome::missed;
  Verdict verdict = Verdict::pass;
  std::string tap;         ///< the first wrong one; empty in a deadlock
  std::vector<int> ranks;  ///< whose part of it is wrong
  Cause cause;
  bool tap_right = false;
  bool cause_right = false;
};

/// Sums over results; equivalent mutants count in `equivalent` only.
struct MutationCounts {
  std::int64_t instances = 0;
  std::int64_t detected = 0;
  std::int64_t tap_right = 0;
  std::int64_t cause_right = 0;
  std::int64_t equivalent = 0;
  std::int64_t missed = 0;
  void add(const MutationResult& result);
  void add(const MutationCounts& other);
};

struct MutationScore {
  Plan plan;
  std::vector<MutationResult> results;  ///< in order of mutation_kinds()
  double seconds = 0;
  MutationCounts counts(MutationClass of) const;
};

struct MutationOptions {
  std::size_t per_kind = 2;                 ///< instances of a kind, at most
  ops::Format format = ops::Format::exact;  ///< that sharding bugs run in
  int threads = 0;                          ///< 0: as many as the process may use
  /// What is scored; default: verify().
  std::function<VerifyReport(const RunnablePlan&, const VerifyOptions&)> verifier = {};
  std::function<bool(std::string_view)> wanted = {};  ///< which kinds; default: all
  std::function<void(const MutationResult&)> progress = {};
};

/// Runs every instance of every kind. The plan must pass.
MutationScore run_mutations(const RunnablePlan& plan, const MutationOptions& options = {});

}  // namespace shardproof
