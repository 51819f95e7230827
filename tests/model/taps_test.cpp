#include "emu/model/taps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

TEST(TapTable, HasARowForEveryKindInItsOrderWithANameOfItsOwn) {
  int index = 0;
  std::set<std::string_view> names;

  for (const TapRow& row : tap_table()) {
    EXPECT_EQ(static_cast<int>(row.kind), index++);
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_NE(row.width, nullptr);
  }

  EXPECT_EQ(index, kTapKinds);
}

TEST(TapId, PrintsWhatIsThereOnly) {
  EXPECT_EQ(to_string(TapId{.kind = TapKind::logits}), "logits");
  EXPECT_EQ(to_string(TapId{.layer = 3, .kind = TapKind::attention_q}), "layer.3.attention.q");
  EXPECT_EQ(to_string(TapId{.step = 2, .layer = 0, .kind = TapKind::router_choice}),
            "step.2.layer.0.moe.router_choice");
  EXPECT_EQ(to_string(TapId{.layer = 1, .kind = TapKind::moe_output, .expert = 5, .slot = 1}),
            "layer.1.moe.output.expert.5.slot.1");
  EXPECT_EQ(to_string(TapId{.layer = 1, .kind = TapKind::attention_partial, .part = 3}),
            "layer.1.attention.partial.part.3");
}

TEST(TapId, IsReadBackFromItsName) {
  for (const TapId& id : all_taps(testing::small_plan({}).model)) EXPECT_EQ(parse_tap_id(to_string(id)), id);
  for (const TapId& id : {TapId{.step = 2, .layer = 0, .kind = TapKind::router_choice},
                          TapId{.layer = 1, .kind = TapKind::moe_output, .expert = 5, .slot = 1},
                          TapId{.layer = 1, .kind = TapKind::expert_partial, .part = 0}}) {
    EXPECT_EQ(parse_tap_id(to_string(id)), id);
  }
}

TEST(TapId, IsNotReadFromAnyOtherText) {
  for (const char* text : {"", "layer", "layer.3", "layer.3.", "layer.x.attention.q", "layer.-1.attention.q",
                           "layer.03.attention.q", "attention.q", "layer.3.logits", "layer.3.attention.qq",
                           "layer.3.attention.q.", "linear.output", "layer.99999999999.attention.q"}) {
    EXPECT_EQ(parse_tap_id(text), std::nullopt) << text;
  }
}

TEST(AllTaps, StandInProgramOrderOnceEach) {
  const ModelConfig model = testing::small_plan({}).model;

  const std::vector<TapId> taps = all_taps(model);

  std::set<std::string> names;
  for (const TapId& id : taps) EXPECT_TRUE(names.insert(to_string(id)).second);
  EXPECT_EQ(taps.size(), 3U + 13U * 4U);
  EXPECT_EQ(to_string(taps.front()), "embedding");
  EXPECT_EQ(to_string(taps[1]), "layer.0.attention.norm");
  EXPECT_EQ(to_string(taps.back()), "logits");
}

TEST(AllTaps, HaveOnePartialSumForEachRankOfAReductionWhereInnerOnesAreWanted) {
  const ModelConfig model = testing::small_plan({}).model;

  std::vector<std::string> names;
  for (const TapId& id : all_taps(model, {.tp = 2, .etp = 3})) names.push_back(to_string(id));

  EXPECT_EQ(std::ranges::count_if(names, [](const std::string& name) { return name.find("attention.partial") < 99; }),
            2 * 4);
  EXPECT_EQ(std::ranges::count_if(names, [](const std::string& name) { return name.find("expert_partial") < 99; }),
            3 * 4);
  EXPECT_EQ(names.size(), all_taps(model).size() + 4U * (2 + 3 + 4));
  EXPECT_EQ(tap_rows(model, {.layer = 0, .kind = TapKind::expert_gate}, 5), 5 * model.layers[0].feed_forward.top_k);
  EXPECT_EQ(tap_rows(model, {.layer = 0, .kind = TapKind::moe_output}, 5), 5);
}

}  // namespace
}  // namespace shardproof
