// Requests that share full blocks of the cache, and replicas that run padding in place of work.
#include <gtest/gtest.h>

#include <string>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/run/fault.h"
#include "emu/run/kv_cache.h"
#include "tests/judge/random_verification.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::explain;

constexpr ops::Format kFormats[] = {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16,
                                    ops::Format::fp16};

Plan prefix_plan(const Parallel& parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 4}) {
  Plan plan = testing::small_plan(parallel);
  plan.workload.serving =
      Serving{.requests = {{.prompt = 12, .output = 5, .prefix = 11},
                           {.prompt = 13, .output = 3, .prefix = 11},
                           {.prompt = 10, .output = 6, .arrival = 1, .prefix = 9},
                           {.prompt = 12, .output = 5, .prefix = 11, .prefix_group = 1},
                           {.prompt = 13, .output = 3, .prefix = 11, .prefix_group = 1},
                           {.prompt = 10, .output = 6, .arrival = 2, .prefix = 9, .prefix_group = 1}},
              .kv_block_size = 4,
              .prefix_sharing = true,
              .steps = {}};
  plan.workload.microbatches = 2;
  set_lengths(plan.workload);
  return plan;
}

TEST(PrefixSharing, PassesInEveryFormatAndShare) {
  const Parallel shares[] = {{.tp = 2, .dp = 2, .pp = 2, .ep = 4},
                             {.tp = 4, .ep = 4, .sp = true, .dcp = 2},
                             {.tp = 2, .dp = 2, .ep = 4, .overlap = Overlap::two_batch},
                             {.tp = 4,
                              .ep = 2,
                              .edp = 2,
                              .dispatch = DispatchComm::all_reduce,
                              .experts = {.redundant = 4, .map = ExpertPlacement::Map::linear}}};
  for (const Parallel& parallel : shares) {
    for (const ops::Format format : kFormats) {
      const VerifyReport report = verify(prefix_plan(parallel), {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << parallel.tp << " " << ops::to_string(format);
    }
  }
}

/// One rank reads the first block of every request that shares from another block of the cache.
class ReadsAnotherBlock final : public FaultInjector {
 public:
  void edit_cache(const Rank& rank, std::int64_t /*microbatch*/, CachedPass& pass) override {
    for (CachedSequence& sequence : pass.sequences) {
      if (to_int(rank.id()) != 0 || sequence.chunk.prefix_of < 0) continue;
      sequence.blocks[0] = sequence.blocks.back();
    }
  }
};

TEST(PrefixSharing, SeesWhoReadsAnotherBlock) {
  ReadsAnotherBlock fault;

  const VerifyReport report = verify(prefix_plan(), {.format = ops::Format::exact, .fault = &fault});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
}

// A request that maps blocks of another prompt, as after a collision of hashes: what it does not run is wrong.
TEST(PrefixSharing, HoldsTokensThatAreNotRunToTheirOwnSequence) {
  const Plan plan = prefix_plan();
  Plan other = plan;
  other.workload.serving->requests[1].prefix_group = 7;
  const PreparedReference reference = prepare_reference(other, ops::Format::exact);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .prepared = &reference});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "embedding");
}

/// One replica has a request, the others pad, one of them from the second step on.
Plan padded_plan(const Parallel& parallel) {
  Plan plan = testing::small_plan(parallel);
  plan.workload.serving =
      Serving{.requests = {{.prompt = 6, .output = 4}, {.prompt = 5}}, .kv_block_size = 2, .steps = {}};
  plan.workload.idle = Idle::pad;
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  return plan;
}

TEST(Padding, IsNeverComparedAndDoesNotLeak) {
  const Parallel ways[] = {{.tp = 2, .dp = 4, .ep = 4, .etp = 2},
                           {.tp = 2, .dp = 3, .pp = 2, .ep = 2, .edp = 3, .sp = true},
                           {.tp = 2, .dp = 4, .ep = 4, .edp = 2, .dispatch = DispatchComm::all_gather},
                           {.tp = 4, .dp = 4, .ep = 2, .edp = 8, .dispatch = DispatchComm::all_reduce}};
  for (const Parallel& parallel : ways) {
    for (const ops::Format format : kFormats) {
      const VerifyReport report = verify(padded_plan(parallel), {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass)
          << to_string(parallel.dispatch) << " " << ops::to_string(format) << explain(report);
    }
  }
}

TEST(Padding, IsSentToExperts) {
  const auto sent = [](Idle idle) {
    Plan plan = padded_plan({.tp = 2, .dp = 4, .ep = 4, .etp = 2});
    plan.workload.idle = idle;
    double bytes = 0;
    for (const CollectiveReport& line : verify(plan, {.format = ops::Format::exact}).collectives) {
      if (line.group == "ep") bytes += static_cast<double>(line.bytes);
    }
    return bytes;
  };

  EXPECT_GT(sent(Idle::pad), sent(Idle::zero));
}

}  // namespace
}  // namespace shardproof
