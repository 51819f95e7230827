// What a verification found, as data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "collectives/algorithm.h"
#include "emu/judge/amplification_report.h"
#include "emu/judge/cause.h"
#include "emu/judge/exact_use.h"
#include "emu/judge/stall.h"
#include "emu/plan/plan.h"
#include "ops/format.h"

namespace shardproof {

enum class Verdict {
  pass,          ///< every tap agrees
  mismatch,      ///< a tap differs: the algebra is wrong, or it rounds more than the bound allows
  inconclusive,  ///< agreement or difference would prove nothing: an expected tap is zero, constant or not finite, a
                 ///< sum of `exact` is wider than its budget, or the format overflowed
  deadlock,      ///< ranks wait for each other for ever, or called collectives that do not match
  invalid,       ///< the plan cannot be run
};

/// "pass", "mismatch", "inconclusive", "deadlock", "invalid".
const char* to_string(Verdict verdict);

/// Of one tap, set by judge() (judge.h) and read by everybody else.
enum class TapVerdict {
  pass,
  mismatch,      ///< a rank's part is wrong, or replicas differ
  missing,       ///< no rank produced it, or some of its elements
  inconclusive,  ///< agreement, or the difference that there is, proves nothing here
  not_judged,    ///< of a dump: what it is computed from is not in it
};

/// "pass", "mismatch", "missing", "inconclusive", "not_judged".
const char* to_string(TapVerdict verdict);

struct TapReport {
  std::string name;
  std::string kind;    ///< the name without its layer
  bool inner = false;  ///< a step of what is otherwise one tap (TapRow::inner)
  TapVerdict verdict = TapVerdict::inconclusive;
  /// |got - expected| of the worst element, the one whose error is largest against its bound (in `exact`, against the
  /// scale of its row); infinite when the tap is missing.
  double max_error = 0;
  double bound = 0;  ///< of that element
  bool replicas_equal = true;
  std::int64_t rows = 0;  ///< shape of the whole tensor
  std::int64_t cols = 0;
  double norm = 0;                          ///< of the sharded run's values, a replicated one once
  std::optional<std::uint64_t> exact_hash;  ///< in `exact`, of a tap that agrees: hash_bits of its values (hash.h)
  std::uint64_t bits = 0;  ///< hash of the sharded run's bits: equal for one plan and seed, whatever the schedule
};

/// Where a token is run, of a plan that serves requests.
struct ServedAt {
  std::int64_t step = 0;
  std::int64_t request = 0;
  std::int64_t position = 0;  ///< in the request's sequence
};

/// The first tap in program order that is wrong.
struct Divergence {
  std::string tap;
  TapVerdict verdict = TapVerdict::mismatch;
  std::vector<int> ranks;  ///< whose part of it is wrong; of a missing tap, who is known to owe one
  std::int64_t row = 0;    ///< of the worst element: its token, and its place in the row
  std::int64_t col = 0;
  std::optional<ServedAt> served = {};  ///< of the worst element's token
  double expected = 0;
  double got = 0;
  double error = 0;     ///< |got - expected|
  double bound = 0;     ///< of that element
  std::string message;  ///< in words
  std::optional<Cause> cause;
};

/// What redundant experts do for the balance of the ep ranks.
struct ReplicaReport {
  std::vector<std::vector<std::int64_t>> tokens;  ///< [layer][physical expert]
  /// Slots of the busiest ep rank over the mean of all, in the layer where it is largest: with every expert once, in
  /// order; and as the plan has it.
  double imbalance_without = 0;
  double imbalance_with = 0;
};

/// Collectives of one operation over the groups of one axis, summed over ranks.
struct CollectiveReport {
  std::string operation;
  std::string group;       ///< the axis: "tp"
  std::int64_t calls = 0;  ///< a call of a group counts once
  std::int64_t bytes = 0;  ///< that the ranks put in, in the run's scalar
};

/// How much of a run somebody's dump (dump.h) shows.
struct DumpCoverage {
  std::string profile;                ///< the rounding profile that it is held to (rounding/bounds.h)
  std::int64_t judged = 0;            ///< of the taps that are there
  std::vector<Problem> not_judged;    ///< the others, and why
  std::vector<std::string> computed;  ///< taps that are not there, computed within bounds to judge others
};

struct VerifyReport {
  Verdict verdict = Verdict::invalid;
  Plan plan;  ///< as run, after scaling
  ops::Format format = ops::Format::fp32;
  int threads = 0;
  std::optional<std::uint64_t> schedule;
  std::vector<Problem> problems;  ///< why it is invalid or inconclusive; may stand beside a mismatch
  /// Beside the verdict: of a stall, what was wrong before it; of a scheme, which ranks tapped nothing of a tensor.
  std::vector<std::string> notes;
  int schedules = 0;  ///< of a scheme: under so many more it was run, and held to the first run
  std::optional<std::uint64_t> schedule_dependent;  ///< the first seed whose run differs
  std::vector<TapReport> taps;                      ///< in program order
  std::int64_t elements = 0;                        ///< values compared, a replicated one once
  std::optional<Divergence> first_divergence;
  std::optional<DumpCoverage> dump;                          ///< where no run was judged but a dump
  std::optional<ExactUse> exact_use;                         ///< of a run in `exact`
  std::int64_t router_choices = 0;                           ///< made: tokens of the batch times layers
  std::vector<std::vector<std::int64_t>> tokens_per_expert;  ///< [layer][expert]
  std::optional<ReplicaReport> replicas;                     ///< in `exact`, of a plan that says where experts lie
  std::vector<CollectiveReport> collectives;
  std::optional<Stall>
      stall;  ///< set exactly when the verdict is deadlock; a tap that was wrong before is first_divergence
  double reference_seconds = 0;
  double sharded_seconds = 0;

  double seconds() const { return reference_seconds + sharded_seconds; }
};

/// Two verdicts, never mixed.
struct Proof {
  VerifyReport algebra;                  ///< in `exact`, with no tolerance; of an invalid plan, its problems
  std::optional<VerifyReport> rounding;  ///< in a float format, where one was asked for and the algebra passed
  /// From end to end, where it was asked for and the rounding passed; a gate only by its limit.
  std::optional<AmplificationReport> amplification = {};

  /// The verdict that was reached last: both hold when it passes.
  const VerifyReport& last() const { return rounding ? *rounding : algebra; }
  Verdict verdict() const {
    return amplification && amplification->beyond_limit() ? Verdict::mismatch : last().verdict;
  }
};

/// One order of the all-reduce, and what was proven with it.
struct OrderReport {
  Algorithm algorithm = Algorithm::rank_order;
  Proof proof;
};

}  // namespace shardproof
