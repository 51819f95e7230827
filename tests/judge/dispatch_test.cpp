// How tokens come to their experts, and what is computed meanwhile: the same bits, however.
#include <gtest/gtest.h>

#include "emu/judge/verify.h"
#include "emu/mutate/mutation.h"
#include "emu/timeline/projection.h"
#include "tests/mutate/mutation_support.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

constexpr ops::Format kFormats[] = {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16,
                                    ops::Format::fp16};

/// With experts that are there twice and a shared one, and sequences of which replicas have more or fewer.
Plan plan_with(const Parallel& parallel) {
  Plan plan = testing::small_plan(parallel);
  plan.parallel.experts = {.redundant = 3};
  plan.model.layers.kind(0).feed_forward.shared_intermediate_size = 8;
  plan.workload.lengths = {9, 1, 2, 7, 5};
  return plan;
}

/// tp 4, so that ep 2 and etp 2 lie inside.
Plan dispatched(DispatchComm dispatch, bool sp = false) {
  return plan_with({.tp = 4, .dp = 2, .ep = 2, .etp = 2, .edp = 2, .sp = sp, .dispatch = dispatch});
}

Plan overlapped(Overlap overlap) {
  return plan_with({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2, .overlap = overlap});
}

void expect_pass(const Plan& plan) {
  for (const ops::Format format : kFormats) {
    const VerifyReport report = verify(plan, {.format = format});

    EXPECT_EQ(report.verdict, Verdict::pass)
        << to_string(plan.parallel.dispatch) << " " << to_string(plan.parallel.overlap) << " " << to_string(format)
        << (report.first_divergence ? report.first_divergence->message : "");
  }
}

std::int64_t calls(const Plan& plan, const std::string& group, const std::string& operation) {
  const VerifyReport report = verify(plan, {.format = ops::Format::exact});
  for (const CollectiveReport& line : report.collectives) {
    if (line.group == group && line.operation == operation) return line.calls;
  }
  return 0;
}

void expect_named(const Plan& plan, std::string_view kind) {
  const MutationScore score = run_mutations(
      testing::runnable(plan), {.per_kind = 2, .wanted = [&](std::string_view name) { return name == kind; }});

  EXPECT_FALSE(score.results.empty()) << kind;
  EXPECT_EQ(testing::report_of(score), "") << kind;
}

TEST(MoeDispatch, PassesInEveryFormatHoweverTokensCome) {
  for (const DispatchComm dispatch : {DispatchComm::all_to_all, DispatchComm::all_gather, DispatchComm::all_reduce}) {
    expect_pass(dispatched(dispatch));
  }
  expect_pass(dispatched(DispatchComm::all_gather, true));
}

TEST(MoeDispatch, CallsWhatItsNameSays) {
  const Plan gathered = dispatched(DispatchComm::all_gather), alike = dispatched(DispatchComm::all_reduce);

  // 4 layers, 2 microbatches, 4 groups of 2: rows, choices and weights; the sums.
  EXPECT_EQ(calls(gathered, "ep", "all_gather"), 4 * 2 * 4 * 3);
  EXPECT_EQ(calls(gathered, "ep", "reduce_scatter"), 4 * 2 * 4);
  EXPECT_EQ(calls(gathered, "ep", "all_to_all"), 0);
  EXPECT_EQ(calls(alike, "ep", "all_reduce"), 4 * 2 * 4);
  EXPECT_EQ(calls(alike, "ep", "all_gather"), 0);
  EXPECT_EQ(calls(alike, "tp", "all_gather"), 0);  // every rank has the rows
}

TEST(MoeDispatch, HoldsTheSumOverEpToThePartialSumsOfItsRanks) {
  const Plan plan = dispatched(DispatchComm::all_gather);
  const VerifyReport report = verify(plan, {.format = ops::Format::bf16});

  int partial = 0;
  for (const TapReport& tap : report.taps) partial += tap.name.find("moe.partial.part.") != std::string::npos ? 1 : 0;
  EXPECT_EQ(partial, 4 * 2);
}

TEST(MoeDispatch, NamesWhatGoesWrong) {
  const Plan gathered = dispatched(DispatchComm::all_gather), alike = dispatched(DispatchComm::all_reduce);

  expect_named(gathered, "dispatch_gathered_order");
  expect_named(alike, "expert_replicas_summed");
  for (const Plan& plan : {gathered, alike}) {
    for (const char* kind : {"moe_reduction_dropped", "moe_reduction_doubled", "moe_partial_sum_missing",
                             "moe_partial_sum_doubled", "expert_reduction_dropped", "router_weights_swapped"}) {
      expect_named(plan, kind);
    }
  }
}

TEST(MoeOverlap, PassesInEveryFormat) {
  expect_pass(overlapped(Overlap::shared_expert));
  expect_pass(overlapped(Overlap::two_batch));
}

TEST(MoeOverlap, NamesRowsThatAreReadBeforeTheyHaveCome) {
  expect_named(overlapped(Overlap::shared_expert), "dispatch_awaited_late");
  expect_named(overlapped(Overlap::two_batch), "dispatch_awaited_late");
}

TEST(MoeOverlap, HidesWhatIsUnderWayFromTheClock) {
  const auto time_of = [](Overlap overlap) {
    Plan plan = overlapped(overlap);
    plan.parallel.pp = 1;  // a pair goes through a pipeline as one
    plan.model.hidden_size = 2048;
    plan.model.layers.kind(0).feed_forward.intermediate_size = 4096;
    plan.model.layers.kind(0).feed_forward.shared_intermediate_size = 4096;
    plan.workload.lengths = {2048, 4096, 2048, 4096};
    return time_pass(plan, dry_run(plan, ops::Format::bf16, DryPass::prefill, StatedRouting::of(plan)),
                     DryPass::prefill, built_in_hardware().find("h100")->model, {});
  };
  const PassTiming none = time_of(Overlap::none);

  EXPECT_EQ(none.hidden, 0);
  for (const Overlap overlap : {Overlap::shared_expert, Overlap::two_batch}) {
    const PassTiming timing = time_of(overlap);
    EXPECT_GT(timing.hidden, 0) << to_string(overlap);
    EXPECT_LT(timing.seconds, none.seconds) << to_string(overlap);
    EXPECT_NEAR(timing.overhead + timing.computing + timing.communicating + timing.waiting + timing.bubble, 1, 1e-9);
    EXPECT_EQ(timing.flops, none.flops);
  }
}

}  // namespace
}  // namespace shardproof
