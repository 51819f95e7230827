#include "emu/mutate/mutation.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <utility>

#include "emu/judge/prepared.h"
#include "emu/judge/rounding/op_rules.h"
#include "emu/judge/verify.h"
#include "emu/mutate/raw_bits.h"

namespace shardproof {
namespace {

/// What the runs of one format share.
struct Healthy {
  PreparedReference reference;
  RawBits bits;
};

/// One plan, its references in each format that a mutation runs in, made when first needed.
class Subject {
 public:
  Subject(const RunnablePlan& plan, const MutationOptions& options) : plan_(plan), options_(options) {}

  VerifyReport verify_faulty(const Mutation& mutation) {
    const std::unique_ptr<FaultInjector> fault = mutation.make();
    const VerifyOptions options = options_of(mutation, fault.get());
    return options_.verifier ? options_.verifier(plan_, options) : verify(plan_, options);
  }

  /// Whether every rank of the faulty run taps what it taps in a healthy one.
  bool changes_nothing(const Mutation& mutation) {
    Healthy& healthy = in(mutation.format);
    if (!healthy.bits) healthy.bits = raw_bits(plan_, options_of(mutation, nullptr), healthy.reference);
    const std::unique_ptr<FaultInjector> fault = mutation.make();
    const RawBits faulty = raw_bits(plan_, options_of(mutation, fault.get()), healthy.reference);
    return faulty.has_value() && faulty == healthy.bits;
  }

  const PreparedReference& reference(ops::Format format) { return in(format).reference; }

 private:
  VerifyOptions options_of(const Mutation& mutation, FaultInjector* fault) {
    return {.format = mutation.format,
            .threads = options_.threads,
            .fault = fault,
            .prepared = &in(mutation.format).reference,
            .prepared_exact = &in(ops::Format::exact).reference};
  }
  Healthy& in(ops::Format format) {
    const auto found = healthy_.find(format);
    if (found != healthy_.end()) return found->second;
    return healthy_.emplace(format, Healthy{prepare_reference(plan_.plan(), format), {}}).first->second;
  }

  const RunnablePlan& plan_;
  const MutationOptions& options_;
  std::map<ops::Format, Healthy> healthy_;
};

/// Whether a tap is the expected one, or a step of its op: inner taps, from one to the next, that it is computed from.
bool is_tap_or_step(const Plan& plan, const ExpectedTaps& taps, const std::string& tap, const std::string& expected) {
  if (tap == expected) return true;
  const int index = taps.find(tap), whole = taps.find(expected);
  if (index < 0 || whole < 0) return false;
  const auto id_of = [&](int at) { return *taps.all()[static_cast<std::size_t>(at)].id; };
  std::vector<TapId> steps{id_of(whole)};
  for (std::size_t i = 0; i < steps.size(); ++i) {
    for (const TapId& input : rounding::inputs_of(plan, steps[i])) {
      if (tap_row(input.kind).inner && std::ranges::find(steps, input) == steps.end()) steps.push_back(input);
    }
  }
  return std::ranges::find(steps, id_of(index)) != steps.end();
}

MutationResult judge(Mutation mutation, const VerifyReport& report, const ExpectedTaps& taps) {
  MutationResult result{.verdict = report.verdict};
  const auto is_right = [&] { return is_tap_or_step(report.plan, taps, result.tap, mutation.tap); };
  if (report.verdict == Verdict::deadlock) {
    result.outcome = MutationResult::Outcome::detected;
    result.tap_right = mutation.tap.empty() || mutation.may_clash;
    if (report.stall) result.cause = report.stall->cause;
    // Where every rank of tp routes all tokens, ranks that have come to differ choose other experts, and the counts of
    // their sums over etp do not fit: after the tap that is wrong, whose cause is what counts.
    const Parallel& p = report.plan.parallel;
    if (p.routes_alike() && p.etp > 1 && report.first_divergence) {
      result.tap = report.first_divergence->tap;
      if (is_right()) {
        result.tap_right = true;
        result.cause = report.first_divergence->cause.value_or(Cause{});
      }
    }
  } else if (report.verdict == Verdict::mismatch && report.first_divergence) {
    const Divergence& divergence = *report.first_divergence;
    result.outcome = MutationResult::Outcome::detected;
    result.tap = divergence.tap;
    result.ranks = divergence.ranks;
    result.tap_right = is_right();
    if (divergence.cause) result.cause = *divergence.cause;
  }
  result.cause_right = std::ranges::find(mutation.causes, result.cause.name) != mutation.causes.end();
  result.mutation = std::move(mutation);
  return result;
}

}  // namespace

MutablePlan::MutablePlan(const Plan& plan, const ExpectedTaps& expected) : Plan(plan), choices(choices_of(expected)) {}

void MutationCounts::add(const MutationResult& result) {
  using Outcome = MutationResult::Outcome;
  ++instances;
  equivalent += result.outcome == Outcome::equivalent ? 1 : 0;
  missed += result.outcome == Outcome::missed ? 1 : 0;
  if (result.outcome != Outcome::detected) return;
  ++detected;
  tap_right += result.tap_right ? 1 : 0;
  cause_right += result.cause_right ? 1 : 0;
}

void MutationCounts::add(const MutationCounts& other) {
  instances += other.instances;
  detected += other.detected;
  tap_right += other.tap_right;
  cause_right += other.cause_right;
  equivalent += other.equivalent;
  missed += other.missed;
}

MutationCounts MutationScore::counts(MutationClass of) const {
  MutationCounts counts;
  for (const MutationResult& result : results) {
    if (result.of == of) counts.add(result);
  }
  return counts;
}

const char* to_string(MutationClass of) {
  return of == MutationClass::sharding ? "sharding" : "rounding";
}

MutationScore run_mutations(const RunnablePlan& runnable, const MutationOptions& options) {
  const Plan& plan = runnable.plan();
  const auto start = std::chrono::steady_clock::now();
  MutationScore score{.plan = plan, .results = {}};
  Subject subject(runnable, options);
  const MutablePlan mutable_plan(plan, subject.reference(ops::Format::exact).expected);
  for (const MutationKind& kind : mutation_kinds()) {
    if (options.wanted && !options.wanted(kind.name)) continue;
    for (Mutation& mutation : kind.instances(mutable_plan, options.per_kind)) {
      mutation.kind = kind.name;
      if (kind.of == MutationClass::sharding) mutation.format = options.format;
      const VerifyReport report = subject.verify_faulty(mutation);
      const ExpectedTaps& taps = subject.reference(mutation.format).expected;
      MutationResult result = judge(std::move(mutation), report, taps);
      result.of = kind.of;
      const bool may_be = kind.may_be_equivalent != nullptr && kind.may_be_equivalent(plan);
      if (result.outcome == MutationResult::Outcome::missed && may_be && subject.changes_nothing(result.mutation)) {
        result.outcome = MutationResult::Outcome::equivalent;
      }
      if (options.progress) options.progress(result);
      score.results.push_back(std::move(result));
    }
  }
  score.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return score;
}

}  // namespace shardproof
