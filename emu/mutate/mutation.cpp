#include "emu/mutate/mutation.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"

namespace shardproof {
namespace {

VerifyReport run_faulty(const RunnablePlan& plan, const PreparedReference& reference, const Mutation& mutation,
                        int threads, bool diagnose) {
  const std::unique_ptr<FaultInjector> fault = mutation.make();
  return verify(plan, {.format = ops::Format::exact,
                       .threads = threads,
                       .fault = fault.get(),
                       .prepared = &reference,
                       .diagnose = diagnose});
}

/// References of the plan under further seeds, made when first needed.
class FurtherSeeds {
 public:
  FurtherSeeds(const RunnablePlan& plan, const MutationOptions& options) : plan_(plan), options_(options) {}

  /// Whether the mutant passes under every further seed too. No fault depends on the values of tokens or weights.
  bool all_pass(const Mutation& mutation) {
    for (int i = 0; i < options_.further_seeds; ++i) {
      const Seeded& seeded = at(static_cast<std::size_t>(i));
      const VerifyReport report = run_faulty(seeded.plan, seeded.reference, mutation, options_.threads, false);
      if (report.first_divergence || report.verdict == Verdict::deadlock) return false;
    }
    return true;
  }

 private:
  struct Seeded {
    RunnablePlan plan;
    PreparedReference reference;
  };
  Seeded& at(std::size_t index) {
    while (seeded_.size() <= index) {
      RunnablePlan plan = plan_.reseeded(plan_.plan().workload.seed + 1000003 * (seeded_.size() + 1));
      PreparedReference reference = prepare_reference(plan.plan(), ops::Format::exact);
      seeded_.push_back(std::make_unique<Seeded>(Seeded{std::move(plan), std::move(reference)}));
    }
    return *seeded_[index];
  }

  const RunnablePlan& plan_;
  const MutationOptions& options_;
  std::vector<std::unique_ptr<Seeded>> seeded_;
};

MutationResult judge(Mutation mutation, const VerifyReport& report) {
  MutationResult result{.verdict = report.verdict};
  if (report.verdict == Verdict::deadlock) {
    result.outcome = MutationResult::Outcome::detected;
    result.tap_right = mutation.tap.empty() || mutation.may_clash;
    if (report.stall) result.cause = report.stall->cause;
  } else if (report.first_divergence) {
    const Divergence& divergence = *report.first_divergence;
    result.outcome = MutationResult::Outcome::detected;
    result.tap = divergence.tap;
    result.ranks = divergence.ranks;
    result.tap_right = divergence.tap == mutation.tap;
    if (divergence.cause) result.cause = *divergence.cause;
  }
  result.cause_right = std::ranges::find(mutation.causes, result.cause.name) != mutation.causes.end();
  result.mutation = std::move(mutation);
  return result;
}

}  // namespace

MutablePlan::MutablePlan(const Plan& plan, const ExpectedTaps& expected)
    : Plan(plan), choices(expected_ids(expected)) {}

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

MutationCounts MutationScore::counts() const {
  MutationCounts counts;
  for (const MutationResult& result : results) counts.add(result);
  return counts;
}

MutationScore run_mutations(const RunnablePlan& runnable, const MutationOptions& options) {
  const Plan& plan = runnable.plan();
  const auto start = std::chrono::steady_clock::now();
  MutationScore score{.plan = plan, .results = {}};
  const PreparedReference reference = prepare_reference(plan, ops::Format::exact);
  const MutablePlan mutable_plan(plan, reference.expected);
  FurtherSeeds further(runnable, options);
  for (const MutationKind& kind : mutation_kinds()) {
    if (options.wanted && !options.wanted(kind.name)) continue;
    std::vector<Mutation> instances = kind.instances(mutable_plan, options.per_kind);
    for (Mutation& mutation : instances) {
      mutation.kind = kind.name;
      const VerifyReport report = run_faulty(runnable, reference, mutation, options.threads, true);
      MutationResult result = judge(std::move(mutation), report);
      if (result.outcome == MutationResult::Outcome::missed && further.all_pass(result.mutation)) {
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
