// Dumps of our own runs, right and edited, as somebody else's would be judged.
#include "emu/judge/dump.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "emu/judge/judge_dump.h"
#include "emu/report/json.h"
#include "emu/report/junit.h"
#include "emu/weights/checkpoint.h"
#include "tests/judge/dump_files.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using rounding::RoundingProfile;
using ::testing::Contains;
using testing::DumpFiles;
using testing::EditableTensor;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::runnable;
using testing::small_plan;

const Parallel kSharded[] = {
    {},
    {.tp = 2, .edp = 2},
    {.tp = 2, .pp = 2, .ep = 2, .sp = true},
    {.dp = 2, .ep = 2},
    {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
};

VerifyReport judged(const DumpFiles& files, const Plan& plan, RoundingProfile profile = RoundingProfile::ours,
                    const DumpNames& names = DumpNames()) {
  OpenedDump opened = open_dump(files.folder().string(), runnable(plan), names);
  if (!opened.dump) {
    ADD_FAILURE() << opened.problems.front().field << ": " << opened.problems.front().message;
    return {};
  }
  return judge_dump(runnable(plan), *opened.dump, {.profile = profile});
}

std::string what(const VerifyReport& report) {
  std::string text = to_string(report.verdict);
  if (report.first_divergence) text += ": " + report.first_divergence->tap + ": " + report.first_divergence->message;
  for (const Problem& problem : report.problems) text += "; " + problem.field + ": " + problem.message;
  return text;
}

TEST(Dump, OfARightRunPassesInEveryFormatAndProfileWithEveryTapJudged) {
  for (const Parallel& parallel : kSharded) {
    const Plan plan = small_plan(parallel);
    for (const ops::Format format : {ops::Format::bf16, ops::Format::fp16, ops::Format::fp32, ops::Format::fp64}) {
      const DumpFiles files(plan, format);
      for (const RoundingProfile profile : {RoundingProfile::ours, RoundingProfile::fused, RoundingProfile::eager}) {
        const VerifyReport report = judged(files, plan, profile);

        EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format) << " " << what(report);
        EXPECT_EQ(report.format, format);
        ASSERT_TRUE(report.dump.has_value());
        EXPECT_EQ(report.dump->judged, std::ssize(report.taps));
        EXPECT_THAT(report.dump->not_judged, IsEmpty());
        EXPECT_THAT(report.dump->computed, IsEmpty());
      }
    }
  }
}

/// Leaves out so many of a hundred tensors, the same of every rank.
DumpFiles left_out(const DumpFiles& all, unsigned percent, std::mt19937& random) {
  DumpFiles some = all;
  std::set<std::string> names;
  for (const auto& [rank, tensors] : all.ranks) {
    for (const auto& [name, tensor] : tensors) names.insert(name.substr(0, name.find(".rows")));
  }
  for (const std::string& name : names) {
    if (name == "tokens" || random() % 100 >= percent) continue;
    for (auto& [rank, tensors] : some.ranks) {
      tensors.erase(name);
      tensors.erase(name + ".rows");
    }
  }
  some.write();
  return some;
}

/// What is not there is computed within bounds, which a right run keeps: in the tightest profile, whatever is left out.
TEST(Dump, OfARightRunPassesWhateverIsLeftOut) {
  std::mt19937 random(7);
  for (const Parallel& parallel : kSharded) {
    const Plan plan = small_plan(parallel);
    const DumpFiles all(plan, ops::Format::bf16);
    for (const unsigned percent : {15U, 40U, 70U}) {
      const VerifyReport report = judged(left_out(all, percent, random), plan);

      EXPECT_EQ(report.verdict, Verdict::pass) << what(report);
      EXPECT_GT(report.dump->judged, 0);
      EXPECT_GT(report.dump->computed.size(), 0U);
    }
  }
}

/// Latent attention, gates on shared experts, clamped activations, sinks, partial rotations: each has rules of its own.
class DumpsOfFamilies : public ::testing::TestWithParam<const char*> {};

TEST_P(DumpsOfFamilies, PassWhateverIsLeftOut) {
  const Checkpoint checkpoint(std::filesystem::path(SHARDPROOF_SOURCE_DIR) / "tests/golden/families" / GetParam());
  Plan plan;
  plan.model = checkpoint.model();
  plan.parallel = {.tp = 2, .etp = 2};
  plan.workload.lengths = {7, 1, 9};
  std::mt19937 random(3);
  for (const ops::Format format : {ops::Format::bf16, ops::Format::fp32}) {
    const DumpFiles all(plan, format, &checkpoint);
    for (const unsigned percent : {0U, 30U, 60U}) {
      const DumpFiles some = left_out(all, percent, random);
      const OpenedDump opened = open_dump(some.folder().string(), runnable(plan), DumpNames());
      ASSERT_TRUE(opened.dump.has_value()) << opened.problems.front().field << opened.problems.front().message;
      for (const RoundingProfile profile : {RoundingProfile::ours, RoundingProfile::fused, RoundingProfile::eager}) {
        // Our own run rounds a router's selection bias to the format, other programs keep it in float.
        const bool biased = plan.model.experts().scoring == Scoring::sigmoid;
        if (biased && format == ops::Format::bf16 && profile != RoundingProfile::ours) continue;
        const VerifyReport report =
            judge_dump(runnable(plan), *opened.dump, {.profile = profile, .weights = &checkpoint});

        EXPECT_EQ(report.verdict, Verdict::pass) << to_string(profile) << " " << what(report);
        EXPECT_GT(report.dump->judged, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, DumpsOfFamilies,
                         ::testing::Values("deepseek_v3", "deepseek_v2_groups", "glm4_moe", "gpt_oss",
                                           "qwen2_moe_shared", "qwen3_moe_mixed", "llama_linear_biased"),
                         [](const auto& parameter) { return std::string(parameter.param); });

struct PlantedFault {
  const char* name;
  const char* tap;    ///< that is wrong first
  const char* cause;  ///< or none, where more than one is right
  void (*plant)(DumpFiles& files);
};

void edit_everywhere(DumpFiles& files, const std::string& name, void (*edit)(EditableTensor& tensor)) {
  for (auto& [rank, tensors] : files.ranks) {
    if (tensors.contains(name)) edit(tensors.at(name));
  }
}

const PlantedFault kFaults[] = {
    {"OneValue", "layer.1.attention.output", "",
     [](DumpFiles& files) {
       edit_everywhere(files, "layer.1.attention.output", [](EditableTensor& tensor) { tensor.at(3, 5) += 0.25; });
     }},
    {"SwappedRows", "layer.2.moe.norm", "rows_permuted",
     [](DumpFiles& files) {
       edit_everywhere(files, "layer.2.moe.norm", [](EditableTensor& tensor) {
         for (std::int64_t col = 0; col < tensor.shape[1]; ++col) std::swap(tensor.at(1, col), tensor.at(6, col));
       });
     }},
    {"SkippedAllReduce", "layer.0.attention.output", "reduction_dropped",
     [](DumpFiles& files) {
       for (auto& [rank, tensors] : files.ranks) {
         tensors.at("layer.0.attention.output") = tensors.at(fmt::format("layer.0.attention.partial.part.{}", rank));
       }
     }},
    {"WrongScale", "layer.1.attention.context", "",
     [](DumpFiles& files) {
       edit_everywhere(files, "layer.1.attention.context", [](EditableTensor& tensor) {
         for (double& value : tensor.values) value *= 0.5;
       });
     }},
    {"ScaledTwice", "layer.3.moe.output", "counted_n_times",
     [](DumpFiles& files) {
       edit_everywhere(files, "layer.3.moe.output", [](EditableTensor& tensor) {
         for (double& value : tensor.values) value *= 2;
       });
     }},
    {"AnotherExpert", "layer.2.moe.router_choice", "",
     [](DumpFiles& files) {
       edit_everywhere(files, "layer.2.moe.router_choice", [](EditableTensor& tensor) {
         std::swap(tensor.ids[0], tensor.ids[2]);
         tensor.ids[1] = 3 - tensor.ids[0];
       });
     }},
};

class DumpFaults : public ::testing::TestWithParam<PlantedFault> {};

TEST_P(DumpFaults, AreMismatchesNamedAtTheFirstTapThatIsWrong) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  DumpFiles files(plan, ops::Format::bf16);
  GetParam().plant(files);
  files.write();
  for (const RoundingProfile profile : {RoundingProfile::ours, RoundingProfile::fused, RoundingProfile::eager}) {
    const VerifyReport report = judged(files, plan, profile);

    ASSERT_EQ(report.verdict, Verdict::mismatch) << what(report);
    EXPECT_EQ(report.first_divergence->tap, GetParam().tap) << what(report);
    ASSERT_TRUE(report.first_divergence->cause.has_value());
    if (*GetParam().cause != '\0') {
      EXPECT_EQ(report.first_divergence->cause->name, GetParam().cause) << report.first_divergence->cause->evidence;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Planted, DumpFaults, ::testing::ValuesIn(kFaults),
                         [](const auto& parameter) { return std::string(parameter.param.name); });

double bf16(double value) {
  return ops::stored(value, ops::Format::bf16);
}

/// Leaves out what comes after the tap in its layer: it was computed from other values.
void forget_after(std::map<std::string, EditableTensor>& tensors, const std::string& layer, const char* tap) {
  bool after = false;
  for (const TapRow& row : tap_table()) {
    if (after) {
      std::erase_if(tensors, [&](const auto& entry) {
        const std::optional<TapId> id = parse_tap_id(entry.first.substr(0, entry.first.find(".rows")));
        return id && tap_row(id->kind).name == row.name && entry.first.starts_with(layer);
      });
    }
    after = after || row.name == tap;
  }
}

TEST(DumpProfiles, TellARoundingAfterEachElementaryOpFromOneAnOp) {
  const Plan plan = small_plan({});
  DumpFiles files(plan, ops::Format::bf16);
  auto& tensors = files.ranks.at(0);
  EditableTensor& activation = tensors.at("layer.3.moe.expert_activation");
  const EditableTensor& gate = tensors.at("layer.3.moe.expert_gate");
  const EditableTensor& up = tensors.at("layer.3.moe.expert_up");
  for (std::size_t i = 0; i < activation.values.size(); ++i) {
    activation.values[i] = bf16(bf16(gate.values[i] / (1 + std::exp(-gate.values[i]))) * up.values[i]);
  }
  forget_after(tensors, "layer.3.", "moe.expert_activation");
  files.write();

  EXPECT_EQ(judged(files, plan, RoundingProfile::eager).verdict, Verdict::pass);
  for (const RoundingProfile profile : {RoundingProfile::ours, RoundingProfile::fused}) {
    const VerifyReport report = judged(files, plan, profile);
    ASSERT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_EQ(report.first_divergence->tap, "layer.3.moe.expert_activation");
    EXPECT_EQ(report.first_divergence->cause->name, "rounding");
  }
}

TEST(DumpProfiles, TellARunOfAnotherFormatFromRounding) {
  const Plan plan = small_plan({});
  DumpFiles files(plan, ops::Format::fp32);
  auto& tensors = files.ranks.at(0);
  for (double& value : tensors.at("layer.2.attention.v").values) value = bf16(value);
  forget_after(tensors, "layer.2.", "attention.v");
  files.write();

  for (const RoundingProfile profile : {RoundingProfile::ours, RoundingProfile::fused, RoundingProfile::eager}) {
    const VerifyReport report = judged(files, plan, profile);
    ASSERT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_EQ(report.first_divergence->tap, "layer.2.attention.v");
    EXPECT_EQ(report.first_divergence->cause->name, "rounding");
  }
}

TEST(DumpProfiles, TakeAChoiceInAnyOrderButForOurs) {
  const Plan plan = small_plan({});
  DumpFiles files(plan, ops::Format::bf16);
  auto& tensors = files.ranks.at(0);
  EditableTensor& choice = tensors.at("layer.1.moe.router_choice");
  EditableTensor& weights = tensors.at("layer.1.moe.router_weights");
  for (std::size_t i = 0; i < choice.ids.size(); i += 2) {
    std::swap(choice.ids[i], choice.ids[i + 1]);
    std::swap(weights.values[i], weights.values[i + 1]);
  }
  std::erase_if(tensors, [](const auto& entry) { return entry.first.find("expert_") != std::string::npos; });
  files.write();

  EXPECT_EQ(judged(files, plan, RoundingProfile::fused).verdict, Verdict::pass);
  EXPECT_EQ(judged(files, plan, RoundingProfile::eager).verdict, Verdict::pass);
  EXPECT_EQ(judged(files, plan, RoundingProfile::ours).first_divergence->tap, "layer.1.moe.router_choice");
}

/// The step that a fault is in need not be in the dump.
TEST(Dump, ShowsASkippedReductionWithoutThePartialSums) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  DumpFiles files(plan, ops::Format::bf16);
  for (auto& [rank, tensors] : files.ranks) {
    tensors.at("layer.0.attention.output") = tensors.at(fmt::format("layer.0.attention.partial.part.{}", rank));
    std::erase_if(tensors, [](const auto& entry) { return entry.first.find(".part.") != std::string::npos; });
  }
  files.write();

  const VerifyReport report = judged(files, plan, RoundingProfile::eager);

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.0.attention.output");
  EXPECT_EQ(report.first_divergence->cause->name, "reduction_dropped") << report.first_divergence->cause->evidence;
  EXPECT_THAT(report.dump->computed, Contains("layer.0.attention.partial.part.0"));
}

TEST(Dump, HoldsReplicasToOneAnother) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  DumpFiles files(plan, ops::Format::fp32);
  double& value = files.ranks.at(1).at("layer.2.moe.residual").values[7];
  value = std::nextafter(static_cast<float>(value), 1e9F);
  files.write();

  const VerifyReport report = judged(files, plan);

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.2.moe.residual");
  EXPECT_EQ(report.first_divergence->ranks, std::vector<int>{1});
}

TEST(Dump, SaysWhatCouldNotBeJudged) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  DumpFiles files(plan, ops::Format::bf16);
  for (auto& [rank, tensors] : files.ranks) {
    for (const char* gone : {"attention.output", "attention.context", "attention.q", "attention.k", "attention.v",
                             "attention.norm", "attention.partial.part.0", "attention.partial.part.1"}) {
      tensors.erase(std::string("layer.0.") + gone);
    }
    tensors.erase("embedding");
  }
  files.write();
  const VerifyReport report = judged(files, plan);

  EXPECT_EQ(report.verdict, Verdict::pass) << what(report);
  EXPECT_THAT(to_json(report), HasSubstr("\"computed\": ["));
  EXPECT_THAT(junit_xml({junit_suite(report)}), HasSubstr("failures=\"0\""));

  for (auto& [rank, tensors] : files.ranks) {
    std::erase_if(tensors, [](const auto& entry) {
      return entry.first != "tokens" && entry.first != "layer.1.attention.output" &&
             entry.first != "layer.2.attention.output";
    });
  }
  files.write();
  const VerifyReport none = judged(files, plan);

  EXPECT_EQ(none.verdict, Verdict::inconclusive);
  EXPECT_EQ(none.dump->judged, 0);
  EXPECT_EQ(none.dump->not_judged.size(), 2U);
  EXPECT_THAT(none.dump->not_judged[0].message, HasSubstr("is not there"));
}

TEST(Dump, TakesOneFileOfWholeTensorsAndNamesOfTheirOwn) {
  const Plan whole = small_plan({});
  DumpFiles files(whole, ops::Format::fp32);
  auto& tensors = files.ranks.at(0);
  std::erase_if(tensors, [](const auto& entry) {
    return entry.first.find("expert_") != std::string::npos || entry.first.find("partial") != std::string::npos;
  });
  EditableTensor q = tensors.extract("layer.2.attention.q").mapped();
  q.shape = {8, 8, 4, 4};  // [batch, sequence, heads, head_dim]
  tensors["model.layers.2.q"] = q;
  tensors["input_ids"] = tensors.extract("tokens").mapped();
  tensors["input_ids"].shape = {8, 8};
  tensors["rotary"] = {.type = TensorType::f32, .shape = {2}, .values = {1, 2}};
  files.write_whole("anything.safetensors");
  const DumpNames names({{"model.layers.{layer}.q", "layer.{layer}.attention.q"}, {"rotary", ""}});

  for (const Parallel& parallel : {Parallel{}, Parallel{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    const Plan plan = small_plan(parallel);
    // Whole tensors of a run that was not sharded keep the wider bounds of one that is.
    const VerifyReport report = judged(files, plan, RoundingProfile::eager, names);

    EXPECT_EQ(report.verdict, Verdict::pass) << what(report);
    EXPECT_GT(report.dump->judged, 50);
  }
}

TEST(Dump, TakesRowsInAnyOrderThatIsListed) {
  const Plan plan = small_plan({.dp = 2, .ep = 2});
  DumpFiles files(plan, ops::Format::fp32);
  for (auto& [rank, tensors] : files.ranks) {
    EditableTensor& tensor = tensors.at("layer.1.attention.context");
    EditableTensor turned = tensor;
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 0; row < tensor.shape[0]; ++row) {
      const std::int64_t from = tensor.shape[0] - 1 - row;
      rows.push_back(rank * tensor.shape[0] + from);
      for (std::int64_t col = 0; col < tensor.shape[1]; ++col) turned.at(row, col) = tensor.at(from, col);
    }
    tensor = turned;
    tensors["layer.1.attention.context.rows"] = {TensorType::i64, {tensor.shape[0]}, {}, rows};
  }
  files.write();
  EXPECT_EQ(judged(files, plan).verdict, Verdict::pass);

  for (auto& [rank, tensors] : files.ranks) tensors.erase("layer.1.attention.context.rows");
  files.write();
  EXPECT_EQ(judged(files, plan).first_divergence->tap, "layer.1.attention.context");
}

TEST(Dump, TakesTokenIdsOfThePlan) {
  Plan plan = small_plan({.dp = 2, .ep = 2});
  plan.workload.token_ids.assign(8, {1, 5, 9, 2, 30, 7, 7, 3});
  DumpFiles files(plan, ops::Format::fp32);
  for (auto& [rank, tensors] : files.ranks) tensors.erase("tokens");
  files.write();

  EXPECT_EQ(judged(files, plan).verdict, Verdict::pass);
  Plan other = plan;
  other.workload.token_ids[3][2] = 10;
  EXPECT_EQ(judged(files, other).first_divergence->tap, "embedding");
}

}  // namespace
}  // namespace shardproof
