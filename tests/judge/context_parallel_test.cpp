// Context parallelism, right and wrong, in both verdicts.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "emu/judge/verify.h"
#include "emu/plan/key_spans.h"
#include "emu/run/fault.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

constexpr int kLayer = 1;
constexpr int kRank = 2;  // tp 0, cp 1

Plan cp_plan(CpComm comm) {
  Plan plan = testing::small_plan({.tp = 2, .cp = 2, .pp = 2, .ep = 2, .etp = 2, .sp = true, .cp_comm = comm});
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.attention.heads = 8;
    layer.attention.kv_heads = 4;
  });
  plan.workload.lengths = {9, 1, 2, 7, 16, 3};
  plan.workload.microbatches = 2;
  return plan;
}

/// What one rank does with what one rank's keys gave, in one layer.
template <class T>
using EditPart = std::function<void(ops::MatrixView<T> context, ops::MatrixView<T> lse)>;

class EditedPart final : public FaultInjector {
 public:
  EditedPart(EditPart<float> floats, EditPart<double> doubles)
      : floats_(std::move(floats)), doubles_(std::move(doubles)) {}
  void edit_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<float> context,
                 ops::MatrixView<float> lse) override {
    if (to_int(rank.id()) == kRank && site.layer == kLayer && keys_of == 0) floats_(context, lse);
  }
  void edit_double_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<double> context,
                        ops::MatrixView<double> lse) override {
    if (to_int(rank.id()) == kRank && site.layer == kLayer && keys_of == 0) doubles_(context, lse);
  }

 private:
  EditPart<float> floats_;
  EditPart<double> doubles_;
};

template <class T>
void scale(ops::MatrixView<T> matrix, T factor) {
  for (T& value : matrix.span()) value *= factor;
}

/// A rank attends to all keys of another, behind its queries too.
class MaskOff final : public FaultInjector {
 public:
  void edit_microbatch(const Rank& rank, std::int64_t /*microbatch*/, RankTokens& tokens) override {
    if (to_int(rank.id()) != kRank) return;
    for (Chunk& piece : tokens.shares[0]) piece.begin = -piece.count;
  }
};

void expect_wrong(FaultInjector& fault, ops::Format format, const std::string& tap) {
  const VerifyReport report = verify(cp_plan(CpComm::p2p), {.format = format, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch) << ops::to_string(format);
  EXPECT_EQ(report.first_divergence->tap, tap) << ops::to_string(format);
  EXPECT_EQ(report.first_divergence->ranks, std::vector<int>{kRank}) << ops::to_string(format);
}

TEST(ContextParallel, PassesInEveryFormatHoweverKeysCome) {
  for (const CpComm comm : {CpComm::p2p, CpComm::all_gather, CpComm::a2a}) {
    for (const ops::Format format :
         {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16, ops::Format::fp16}) {
      const VerifyReport report = verify(cp_plan(comm), {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << to_string(comm) << " " << ops::to_string(format);
    }
  }
}

/// Rings of two members, each of two ranks that deal out their heads.
Plan hierarchical_plan() {
  Plan plan = cp_plan(CpComm::a2a_p2p);
  plan.parallel = {.tp = 2, .cp = 4, .pp = 2, .ep = 4, .etp = 2, .sp = true, .cp_comm = CpComm::a2a_p2p, .cp_a2a = 2};
  return plan;
}

TEST(ContextParallel, PassesInARingOfRanksThatDealOutTheirHeads) {
  for (const ops::Format format :
       {ops::Format::exact, ops::Format::fp64, ops::Format::fp32, ops::Format::bf16, ops::Format::fp16}) {
    const VerifyReport report = verify(hierarchical_plan(), {.format = format});

    EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format);
  }
}

TEST(ContextParallel, OfRanksThatDealOutTheirHeadsSendsBothWays) {
  const VerifyReport report = verify(hierarchical_plan(), {.format = ops::Format::exact});
  const auto calls = [&](const std::string& group, const std::string& operation) {
    for (const CollectiveReport& line : report.collectives) {
      if (line.group == group && line.operation == operation) return line.calls;
    }
    return std::int64_t{0};
  };

  // 4 layers, 2 microbatches: q, k, v and back in four pairs of neighbours; a message from each of eight ranks.
  EXPECT_EQ(calls("cp_a2a", "all_to_all"), 4 * 2 * 4 * 4);
  EXPECT_EQ(calls("cp_p2p", "send"), 4 * 2 * 8);
}

TEST(ContextParallel, SendsInEveryWayWhatItSaysItSends) {
  const auto calls = [](CpComm comm, const std::string& operation) {
    const VerifyReport report = verify(cp_plan(comm), {.format = ops::Format::exact});
    for (const CollectiveReport& line : report.collectives) {
      if (line.group == "cp" && line.operation == operation) return line.calls;
    }
    return std::int64_t{0};
  };

  // 4 layers, 2 microbatches, 2 tp groups: keys and values; a message from each of two ranks; q, k, v and back.
  EXPECT_EQ(calls(CpComm::all_gather, "all_gather"), 4 * 2 * 2 * 2);
  EXPECT_EQ(calls(CpComm::p2p, "send"), 4 * 2 * 2 * 2);
  EXPECT_EQ(calls(CpComm::a2a, "all_to_all"), 4 * 2 * 2 * 4);
}

TEST(ContextParallel, LeavesNothingOutOfAMergeUnseen) {
  EditedPart missing([](auto, auto lse) { std::ranges::fill(lse.span(), -std::numeric_limits<float>::infinity()); },
                     [](auto numerator, auto denominator) {
                       scale(numerator, 0.0);
                       scale(denominator, 0.0);
                     });

  expect_wrong(missing, ops::Format::exact, "layer.1.attention.context");
  expect_wrong(missing, ops::Format::bf16, "layer.1.attention.context");
}

TEST(ContextParallel, MergesNothingTwiceUnseen) {
  EditedPart twice(
      [](auto, auto lse) {
        for (float& value : lse.span()) value += std::log(2.0F);
      },
      [](auto numerator, auto denominator) {
        scale(numerator, 2.0);
        scale(denominator, 2.0);
      });

  expect_wrong(twice, ops::Format::exact, "layer.1.attention.context");
  expect_wrong(twice, ops::Format::bf16, "layer.1.attention.context");
}

TEST(ContextParallel, LetsNoNumberOfAnEmptyKeySetPass) {
  EditedPart nan([](auto context, auto) { context(0, 0) = std::numeric_limits<float>::quiet_NaN(); },
                 [](auto numerator, auto) { numerator(0, 0) = std::numeric_limits<double>::quiet_NaN(); });

  expect_wrong(nan, ops::Format::exact, "layer.1.attention.context");
  expect_wrong(nan, ops::Format::bf16, "layer.1.attention.context");
}

TEST(ContextParallel, HoldsTheMaskOfEveryStepOfTheRing) {
  MaskOff fault;

  expect_wrong(fault, ops::Format::exact, "layer.0.attention.context");
  expect_wrong(fault, ops::Format::bf16, "layer.0.attention.ring_context.part.0");
}

TEST(ContextParallel, NamesRoutersChoicesOfZigZagRows) {
  const VerifyReport report = verify(cp_plan(CpComm::p2p), {.format = ops::Format::exact});

  ASSERT_EQ(report.verdict, Verdict::pass);
  std::int64_t slots = 0;
  for (const auto& layer : report.tokens_per_expert) {
    for (const std::int64_t tokens : layer) slots += tokens;
  }
  EXPECT_EQ(slots, 4 * 2 * cp_plan(CpComm::p2p).workload.tokens());
}

}  // namespace
}  // namespace shardproof
