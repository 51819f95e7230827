// What a run that does not end leaves behind, of a scheme as of a plan.
#include "emu/judge/stall.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "emu/judge/scheme.h"
#include "emu/judge/verify.h"
#include "emu/report/json.h"
#include "emu/run/fault.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

VerifyReport stalled(const Cluster::Program& program) {
  ExpectedTaps expected;
  expected.add("y", 1, 2, {3, 30});
  return verify_scheme({.tp = 2}, program, expected);
}

TEST(Stall, OfARankThatDoesNotComeIsADeadlockWithItsGraph) {
  const VerifyReport report = stalled([](Rank& rank) -> Task<> {
    std::vector<double> values(4);
    if (rank.at().tp == 0) co_await rank.tp().all_reduce(std::span(values));
  });

  EXPECT_EQ(report.verdict, Verdict::deadlock);
  ASSERT_TRUE(report.stall.has_value());
  EXPECT_EQ(report.stall->kind, StallKind::deadlock);
  ASSERT_TRUE(report.stall->graph.has_value());
  EXPECT_FALSE(report.stall->graph->empty());
  EXPECT_THAT(report.stall->calls, IsEmpty());
  EXPECT_EQ(report.stall->cause.name, "call_sequence");
  EXPECT_THAT(report.stall->cause.evidence, StartsWith("all_reduce #0 in tp"));
  EXPECT_THAT(to_json(report), HasSubstr("\"kind\": \"deadlock\""));
}

TEST(Stall, OfCallsThatDoNotFitIsAMismatchWithBoth) {
  const VerifyReport report = stalled([](Rank& rank) -> Task<> {
    std::vector<double> values(rank.at().tp == 0 ? 4 : 5);
    co_await rank.tp().all_reduce(std::span(values));
  });

  EXPECT_EQ(report.verdict, Verdict::deadlock);
  ASSERT_TRUE(report.stall.has_value());
  EXPECT_EQ(report.stall->kind, StallKind::collective_mismatch);
  EXPECT_FALSE(report.stall->graph.has_value());
  EXPECT_THAT(report.stall->calls, SizeIs(2));
  EXPECT_EQ(report.stall->cause.name, "call_arguments");
  EXPECT_THAT(to_json(report), HasSubstr("\"kind\": \"collective_mismatch\""));
}

/// Of the first stage's message of microbatch 1 the rank after it knows nothing.
class ForgottenMessage final : public FaultInjector {
 public:
  bool before_call(const Rank& /*rank*/, internal::Call& call) noexcept override { return !is_here(call); }
  void after_call(const Rank& /*rank*/, internal::Call& call) noexcept override {
    if (is_here(call)) std::memset(call.out, 0, call.out_count * size_of(call.type));
  }

 private:
  static bool is_here(const internal::Call& call) {
    return is_call_of(call.tag, Op::stage_receive) && call.tag.microbatch == 1;
  }
};

// One is left out, or they run in another order: the two calls that meet cannot tell.
TEST(Stall, OfMessagesOfDifferentMicrobatchesIsOneOfTheCallsOrder) {
  Plan plan = testing::small_plan({.pp = 2});
  plan.workload.lengths = {3, 4, 5};
  plan.workload.microbatches = 3;
  ForgottenMessage fault;

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::deadlock);
  EXPECT_EQ(report.stall->kind, StallKind::collective_mismatch);
  EXPECT_EQ(report.stall->cause.name, "call_sequence");
  EXPECT_THAT(report.stall->cause.evidence,
              StartsWith("the call of rank 0 is for microbatch 1, that of rank 1 for microbatch 2"));
}

TEST(Stall, OfACallThatIsWrongByItselfIsAMismatchWithThatCall) {
  const VerifyReport report = stalled([](Rank& rank) -> Task<> {
    std::vector<double> values(4);
    co_await rank.tp().broadcast(std::span(values), GroupRank{7});
  });

  ASSERT_TRUE(report.stall.has_value());
  EXPECT_EQ(report.stall->kind, StallKind::collective_mismatch);
  EXPECT_THAT(report.stall->calls, SizeIs(1));
  EXPECT_EQ(report.stall->cause.name, "invalid_call");
  EXPECT_EQ(report.stall->cause.evidence, report.stall->text.substr(0, report.stall->text.find('\n')));
}

}  // namespace
}  // namespace shardproof
