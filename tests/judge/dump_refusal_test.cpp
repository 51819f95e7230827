// Dumps that cannot be judged, and names that are none: one clear error each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "emu/judge/dump.h"
#include "emu/judge/judge_dump.h"
#include "tests/judge/dump_files.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::AllOf;
using testing::DumpFiles;
using testing::EditableTensor;
using ::testing::HasSubstr;
using testing::runnable;
using testing::small_plan;

/// "file: tensor: what is wrong", of a dump that is refused.
std::string refusal(const DumpFiles& files, const Plan& plan, const DumpNames& names = DumpNames(),
                    std::optional<ops::Format> format = std::nullopt) {
  OpenedDump opened = open_dump(files.folder().string(), runnable(plan), names, format);
  if (opened.problems.empty()) {
    try {
      judge_dump(runnable(plan), *opened.dump);
    } catch (const DumpError& error) {
      return error.what();
    }
    return "not refused";
  }
  std::string text;
  for (const Problem& problem : opened.problems) text += problem.field + ": " + problem.message + "\n";
  return text;
}

TEST(DumpRefusal, NamesTheFileTheTensorAndWhatWouldBeRight) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const DumpFiles right(plan, ops::Format::bf16);
  const auto edited = [&](const auto& edit) {
    DumpFiles files = right;
    edit(files.ranks.at(1));
    files.write();
    return refusal(files, plan);
  };
  using Tensors = std::map<std::string, EditableTensor>;

  EXPECT_THAT(edited([](Tensors& t) {
                t.at("layer.0.attention.q").shape = {8, 64};
              }),
              HasSubstr("rank_1.safetensors: layer.0.attention.q: [8, 64]; rank 1 has [64, 8] (columns 8 to 15) or "
                        "[64, 16] of it"));
  EXPECT_THAT(edited([](Tensors& t) { t["layer.0.attention.z"] = t.at("layer.0.attention.q"); }),
              HasSubstr("rank_1.safetensors: layer.0.attention.z: is no tap, as layer.0.attention.output is one"));
  EXPECT_THAT(edited([](Tensors& t) { t["layer.9.attention.q"] = t.at("layer.0.attention.q"); }),
              HasSubstr("layer.9.attention.q is no tap of this plan's model"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("layer.0.attention.q").type = TensorType::f64; }), HasSubstr("not refused"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("layer.1.moe.norm").values[3] = std::numeric_limits<double>::quiet_NaN(); }),
              HasSubstr("rank_1.safetensors: layer.1.moe.norm: row 0, column 3 is not a number"));
  EXPECT_THAT(edited([](Tensors& t) { t.erase("layer.0.attention.q"); }),
              HasSubstr("rank_1.safetensors: layer.0.attention.q: is missing; rank 1 has [64, 8] (columns 8 to 15)"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("layer.0.moe.router_choice").ids[4] = 4; }),
              HasSubstr("is expert 4; the layer has 0 to 3"));
  EXPECT_THAT(edited([](Tensors& t) {
                EditableTensor& choice = t.at("layer.0.moe.router_choice");
                choice.type = TensorType::f32;
                choice.values.assign(choice.ids.begin(), choice.ids.end());
              }),
              HasSubstr("layer.0.moe.router_choice: F32; I64 or I32, ids of experts, is needed"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("tokens").ids[0] = 32; }),
              HasSubstr("id 32 at 0; the vocabulary is 0 to 31"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("tokens").ids[0] ^= 1; }), HasSubstr("for which another file has"));
  EXPECT_THAT(edited([](Tensors& t) { t.at("layer.0.moe.expert_up.rows").ids[0] = -1; }), HasSubstr("row -1"));
  EXPECT_THAT(edited([](Tensors& t) { t.erase("layer.0.moe.expert_up.rows"); }),
              HasSubstr("which slots its rows are of, layer.0.moe.expert_up.rows says"));
  EXPECT_THAT(
      edited([](Tensors& t) { t["layer.0.attention.partial.part.0"] = t.at("layer.0.attention.partial.part.1"); }),
      HasSubstr("in the file of another rank's"));
}

TEST(DumpRefusal, SaysWhichFilesThereHaveToBe) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  DumpFiles files(plan, ops::Format::bf16);
  std::filesystem::remove(files.file(1));
  EXPECT_THAT(refusal(files, plan), AllOf(HasSubstr("rank_1.safetensors is missing: the plan has 2 ranks"),
                                          HasSubstr("rank_0.safetensors to rank_1.safetensors is needed")));
  files.ranks[2] = files.ranks.at(0);
  files.write();
  EXPECT_THAT(refusal(files, plan), HasSubstr("rank_2.safetensors is of no rank: the plan has 2"));
  EXPECT_THAT(open_dump("/nowhere", runnable(plan), DumpNames()).problems.front().message, HasSubstr("no such file"));

  files.ranks.erase(2);
  for (auto& [rank, tensors] : files.ranks) std::erase_if(tensors, [](const auto& t) { return t.first != "tokens"; });
  files.write();
  EXPECT_THAT(refusal(files, plan), HasSubstr("there is nothing to judge"));
}

TEST(DumpRefusal, WantsTokenIdsAndTypesThatHoldTheFormat) {
  const Plan plan = small_plan({});
  DumpFiles files(plan, ops::Format::bf16);
  EXPECT_THAT(refusal(files, plan, DumpNames(), ops::Format::fp32),
              HasSubstr("BF16 is no type for a value of a run in fp32"));
  files.ranks.at(0).erase("tokens");
  files.write();
  EXPECT_THAT(refusal(files, plan), HasSubstr("has no token ids"));
}

TEST(DumpNames, AreReadStrictly) {
  const auto problem = [](const char* text) {
    const LoadedDumpNames loaded = parse_dump_names(text, "names.json");
    return loaded.names ? std::string() : loaded.problems.front().message;
  };
  const DumpNames names =
      parse_dump_names(R"({"h.{layer}.o": "layer.{layer}.attention.output", "ids": "tokens", "x": null})", "f")
          .names.value();

  EXPECT_EQ(names.ours("h.12.o"), "layer.12.attention.output");
  EXPECT_EQ(names.ours("ids"), "tokens");
  EXPECT_EQ(names.ours("x"), "");
  EXPECT_EQ(names.ours("h.x.o"), "h.x.o");
  EXPECT_THAT(problem(R"({"a": "attention.z"})"), HasSubstr("is no tap"));
  EXPECT_THAT(problem(R"({"a.{layer}": "logits"})"), HasSubstr("in both names"));
  EXPECT_THAT(problem(R"({"a": 1})"), HasSubstr("the name of a tap or null is needed"));
  EXPECT_THAT(problem("[]"), HasSubstr("an object of names is needed"));
}

}  // namespace
}  // namespace shardproof
