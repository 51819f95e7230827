#include "emu/timeline/anchors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

namespace shardproof {
namespace {

using ::testing::HasSubstr;

TEST(Anchors, AreManyEachWithItsSourceAndHalfOfThemHeldOut) {
  const AnchorBook& book = built_in_anchors();

  std::set<std::string> ids;
  std::map<std::string, int> balance;
  for (const Anchor& anchor : book.cases) {
    EXPECT_TRUE(ids.insert(anchor.id).second) << anchor.id;
    EXPECT_FALSE(anchor.source.empty()) << anchor.id;
    balance[anchor.group()] += anchor.calibrates ? 1 : -1;
  }
  EXPECT_GE(book.cases.size(), 30u);
  for (const auto& [group, more] : balance) {
    EXPECT_GE(more, 0) << group;
    EXPECT_LE(more, 1) << group;
  }
}

TEST(Anchors, AreProjectedPositiveAndWithinAnOrderOfMagnitude) {
  for (const ProjectedAnchor& row : project_anchors(built_in_anchors(), built_in_hardware())) {
    EXPECT_GT(row.seconds, row.anchor->seconds / 10) << row.anchor->id;
    EXPECT_LT(row.seconds, row.anchor->seconds * 10) << row.anchor->id;
  }
}

/// Of the rows that calibrate, with the presets' own engines or without them.
std::map<std::string, Residuals> residuals(const HardwareBook& hardware, bool by_engine) {
  const std::vector<ProjectedAnchor> rows = project_anchors(built_in_anchors(), hardware);
  std::set<std::string> fitted;
  for (const HardwarePreset& preset : built_in_hardware().presets) {
    for (const EngineModel& engine : preset.engines) fitted.insert(preset.name + " " + engine.name);
  }
  std::map<std::string, std::vector<const ProjectedAnchor*>> groups;
  for (const ProjectedAnchor& row : rows) {
    const Anchor& anchor = *row.anchor;
    if (anchor.kind != AnchorKind::decode && anchor.kind != AnchorKind::first_token) continue;
    if (by_engine && !fitted.contains(anchor.card + " " + anchor.engine)) continue;
    groups[fmt::format("{}{} {}", anchor.card, by_engine ? " " + anchor.engine : "", to_string(anchor.kind))].push_back(
        &row);
  }
  std::map<std::string, Residuals> found;
  for (const auto& [name, group] : groups) found[name] = residuals_of(group);
  return found;
}

void expect_recorded(const Residuals& recorded, const Residuals& found, const std::string& name) {
  if (found.cases < 3) {
    EXPECT_FALSE(recorded.calibrated()) << name;
    return;
  }
  EXPECT_EQ(recorded.cases, found.cases) << name;
  EXPECT_NEAR(recorded.low, found.low, 2e-4) << name;
  EXPECT_NEAR(recorded.high, found.high, 2e-4) << name;
}

TEST(Anchors, GiveTheResidualsThatThePresetsRecord) {
  HardwareBook without_engines = built_in_hardware();
  for (HardwarePreset& preset : without_engines.presets) preset.engines.clear();
  const auto of_engines = residuals(built_in_hardware(), true), of_cards = residuals(without_engines, false);

  int recorded = 0;
  for (const HardwarePreset& preset : built_in_hardware().presets) {
    for (const EngineModel& engine : preset.engines) {
      ++recorded;
      const std::string name = preset.name + " " + engine.name;
      for (const auto& [kind, residuals_of_kind] :
           {std::pair{" decode", &engine.decode}, std::pair{" first_token", &engine.prefill}}) {
        const auto found = of_engines.find(name + kind);
        expect_recorded(*residuals_of_kind, found == of_engines.end() ? Residuals{} : found->second, name + kind);
      }
    }
    if (preset.engines.empty()) {
      EXPECT_FALSE(preset.model.decode.calibrated()) << preset.name << ": nothing was measured on it";
    } else {
      expect_recorded(preset.model.decode, of_cards.at(preset.name + " decode"), preset.name);
      expect_recorded(preset.model.prefill, of_cards.at(preset.name + " first_token"), preset.name);
    }
  }
  EXPECT_GE(recorded, 3);
}

TEST(Anchors, StandInTheTableAsTheyAreProjected) {
  std::ifstream file(std::string(SHARDPROOF_SOURCE_DIR) + "/bench/anchors/RESULTS.md");
  std::ostringstream text;
  text << file.rdbuf();

  for (const ProjectedAnchor& row : project_anchors(built_in_anchors(), built_in_hardware())) {
    const std::size_t at = text.str().find("| " + row.anchor->id + " |");
    ASSERT_NE(at, std::string::npos) << row.anchor->id;
    const std::string line = text.str().substr(at, text.str().find('\n', at) - at);
    EXPECT_THAT(line, HasSubstr(row.anchor->calibrates ? "| calibrate |" : "| held out |"));
    const std::size_t percent = line.find(" % |");
    const double error = std::stod(line.substr(line.rfind("| ", percent) + 2));
    EXPECT_NEAR(error, 100 * row.error(), 0.11) << row.anchor->id << ": calibrate.py --table writes it anew";
  }
}

TEST(Anchors, AreRefusedWhereTheyCannotBeRead) {
  const auto problem = [](const std::string& text) {
    const LoadedAnchors loaded = parse_anchors(text, "mine.json");
    return loaded.problems.empty() ? "" : loaded.problems[0].field + ": " + loaded.problems[0].message;
  };

  EXPECT_THAT(problem("{}"), HasSubstr("shardproof.anchors/1"));
  EXPECT_THAT(problem(R"({"schema": "shardproof.anchors/1", "cases": [{"id": "x", "card": "h100", "kind": "dream"}]})"),
              HasSubstr("cases[0].kind: \"dream\"; one of decode"));
  const auto training = [&](const std::string& fields) {
    return problem(R"({"schema": "shardproof.anchors/1", "cases": [{"id": "x", "card": "h100", "kind": "training",
      "use": "calibrate", "seconds": 1, "source": "x", "weights": "bf16", "model": "m", "context": 8, )" +
                   fields + "}]}");
  };
  EXPECT_EQ(training(R"("batch": 8, "dp": 4, "microbatch": 2)"), "");
  EXPECT_THAT(training(R"("batch": 8, "dp": 4, "microbatch": 4)"),
              HasSubstr("cases[0].microbatch: dp 4 * microbatch 4 does not divide batch 8"));
  EXPECT_THAT(training(R"("batch": 8, "chunks": 2)"), HasSubstr("cases[0].chunks: 2 of one stage; 1 is needed"));
  EXPECT_THAT(training(R"("batch": 8, "recompute": "some")"),
              HasSubstr("cases[0].recompute: \"some\"; one of none, attention, layer"));
  AnchorBook book;
  book.cases.push_back({.id = "x", .engine = "", .card = "h9000", .source = "", .model = ""});
  EXPECT_THROW(project_anchors(book, built_in_hardware()), std::invalid_argument);
}

}  // namespace
}  // namespace shardproof
