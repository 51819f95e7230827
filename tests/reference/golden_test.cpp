// Holds the reference to what Hugging Face Transformers computes: Mixtral in float32 (tests/golden/make_golden.py),
// every other family in float64, but for the norms and the routers, which it takes in float32
// (tests/golden/make_family_golden.py).
//
// The error of a row is its largest difference over the row's root mean square. Each stored float32 value is rounded by
// up to u = 2^-24, and each sum of K terms by about sqrt(K) u; what a layer adds is carried on by the residual stream.
// Measured over the five cases, the worst row is off by 24 to 52 u; the bound is 256 u.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/reference/reference.h"
#include "emu/weights/checkpoint.h"
#include "emu/weights/safetensors.h"
#include "tests/support/golden_families.h"

namespace shardproof::reference {
namespace {

namespace fs = std::filesystem;

constexpr double kUnits = 256;
constexpr double kRoundoff = 0x1p-24;

struct Golden {
  explicit Golden(const std::string& name)
      : folder(fs::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden" / name),
        checkpoint(folder),
        expected(folder / "expected.safetensors") {
    const FileText file = read_file(folder / "sequences.json", 1 << 20);
    const JsonDocument document = parse_json(file.text.value(), "sequences.json", 3);
    for (const JsonValue& sequence : document.value.value().items) {
      lengths.push_back(static_cast<std::int64_t>(sequence.items.size()));
      for (const JsonValue& token : sequence.items) tokens.push_back(static_cast<std::int32_t>(token.integer));
    }
  }

  fs::path folder;
  Checkpoint checkpoint;
  SafetensorsFile expected;
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> lengths;
};

using Change = std::function<std::vector<double>(const std::string& name, std::vector<double> values)>;

/// The worst row's error of each tap that the golden outputs have, in units of 2^-24.
std::map<std::string, double> errors(const Golden& golden, const ModelConfig& model, const Change& change = {}) {
  std::map<std::string, double> result;
  std::map<std::string, WeightSpec> specs;
  for_each_weight(model, [&](const WeightSpec& spec) { specs.emplace(spec.name, spec); });
  const auto weights = [&](const std::string& name, std::int64_t begin, std::int64_t count,
                           std::vector<double>& values) {
    const WeightSpec& spec = specs.at(name);
    std::vector<double> whole(static_cast<std::size_t>(spec.rows * spec.cols));
    golden.checkpoint.read(spec, {0, spec.rows}, {0, spec.cols}, {whole.data(), spec.rows, spec.cols});
    if (change) whole = change(name, std::move(whole));
    const auto first = whole.begin() + begin * spec.cols;
    values.assign(first, first + count * spec.cols);
  };
  forward(model, golden.tokens, golden.lengths, weights, {},
          [&](const TapName& tap, std::int64_t rows, std::int64_t cols, std::vector<double>&& values) {
            const std::string name = to_string(tap);
            const TensorEntry* const entry = golden.expected.header().find(name);
            if (entry == nullptr) return;
            ASSERT_EQ(entry->rows(), rows) << name;
            ASSERT_EQ(entry->cols(), cols) << name;
            ops::Matrix<double> expected(rows, cols);
            golden.expected.read<double>(*entry, {0, rows}, {0, cols}, expected);
            double worst = 0;
            for (std::int64_t i = 0; i < rows; ++i) {
              double squares = 0, difference = 0;
              for (std::int64_t j = 0; j < cols; ++j) {
                const double value = values[static_cast<std::size_t>(i * cols + j)];
                squares += value * value;
                difference = std::max(difference, std::abs(value - expected(i, j)));
              }
              ASSERT_GT(squares, 0.0) << name << " row " << i;
              worst = std::max(worst, difference / std::sqrt(squares / static_cast<double>(cols)));
            }
            result[name] = worst / kRoundoff;
          });
  return result;
}

double worst_of(const std::map<std::string, double>& errors) {
  double worst = 0;
  for (const auto& [name, error] : errors) worst = std::max(worst, error);
  return worst;
}

class GoldenOutputs : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenOutputs, AgreeWithTheReferenceToFloat32Rounding) {
  const Golden golden(GetParam());

  const std::map<std::string, double> found = errors(golden, golden.checkpoint.model());

  EXPECT_EQ(found.size(), golden.expected.header().tensors.size());
  for (const auto& [name, error] : found) {
    EXPECT_LT(error, kUnits) << name << " differs by " << error << " * 2^-24 of its row";
  }
  RecordProperty("worst_error_in_units", std::to_string(worst_of(found)));
}

TEST_P(GoldenOutputs, WouldShowASlightlyWrongModel) {
  const Golden golden(GetParam());
  ModelConfig other_theta = golden.checkpoint.model(), other_eps = other_theta;
  other_theta.layers.kind(0).attention.rope.theta *= 1.5;
  other_eps.rms_norm_eps += 1e-3;
  const Change one_weight = [](const std::string& name, std::vector<double> values) {
    if (name == "model.layers.0.self_attn.v_proj.weight") values[0] += 0.01;
    return values;
  };

  EXPECT_GT(errors(golden, other_theta).at("logits"), 4 * kUnits);
  EXPECT_GT(errors(golden, other_eps).at("logits"), 4 * kUnits);
  EXPECT_GT(errors(golden, golden.checkpoint.model(), one_weight).at("logits"), 4 * kUnits);
}

class FamilyOutputs : public ::testing::TestWithParam<std::string> {};

TEST_P(FamilyOutputs, AgreeWithTheReferenceToFloat32Rounding) {
  const Golden golden("families/" + GetParam());

  const std::map<std::string, double> found = errors(golden, golden.checkpoint.model());

  EXPECT_EQ(found.size(), golden.expected.header().tensors.size());
  for (const auto& [name, error] : found) {
    EXPECT_LT(error, kUnits) << name << " differs by " << error << " * 2^-24 of its row";
  }
  RecordProperty("worst_error_in_units", std::to_string(worst_of(found)));
}

/// The model with one of its features taken away, or off by a little; none where it does not have it.
struct Wrong {
  const char* what;
  std::function<bool(LayerSpec& kind)> edit;
};
const std::vector<Wrong> kWrong = {
    {"window", [](LayerSpec& kind) { return std::exchange(kind.attention.sliding_window, 0) > 0; }},
    {"window off by one",
     [](LayerSpec& kind) { return kind.attention.sliding_window > 0 && kind.attention.sliding_window++ > 0; }},
    {"norms of heads",
     [](LayerSpec& kind) {
       return std::exchange(kind.attention.query_key_norm, QueryKeyNorm::none) != QueryKeyNorm::none;
     }},
    {"biases", [](LayerSpec& kind) { return std::exchange(kind.attention.qkv_bias, false); }},
    {"clipping", [](LayerSpec& kind) { return std::exchange(kind.attention.clip_qkv, 0.0) > 0; }},
    {"bias of the output", [](LayerSpec& kind) { return std::exchange(kind.attention.output_bias, false); }},
    {"sinks", [](LayerSpec& kind) { return std::exchange(kind.attention.sinks, false); }},
    {"scaled angles",
     [](LayerSpec& kind) { return std::exchange(kind.attention.rope.type, RopeType::plain) != RopeType::plain; }},
    {"amplitude", [](LayerSpec& kind) { return std::exchange(kind.attention.rope.amplitude, 1.0) != 1; }},
    {"scale of the scores", [](LayerSpec& kind) { return std::exchange(kind.attention.rope.mscale_all_dim, 0.0) > 0; }},
    {"pairing", [](LayerSpec& kind) { return std::exchange(kind.attention.rope.interleaved, false); }},
    {"selection bias", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.selection_bias, false); }},
    {"groups", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.groups, 1) > 1; }},
    {"scale of the weights",
     [](LayerSpec& kind) { return std::exchange(kind.feed_forward.routed_scaling_factor, 1.0) != 1; }},
    {"renormalisation",
     [](LayerSpec& kind) {
       kind.feed_forward.norm_topk_prob = !kind.feed_forward.norm_topk_prob;
       return !kind.feed_forward.dense() && kind.feed_forward.scoring != Scoring::sparsemixer;
     }},
    {"gate of the shared expert", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.shared_gate, false); }},
    {"shared expert", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.shared_intermediate_size, 0) > 0; }},
    {"biases of the experts", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.expert_bias, false); }},
    {"bias of the router", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.router_bias, false); }},
    {"scale of the scores as a multiplier",
     [](LayerSpec& kind) { return std::exchange(kind.attention.attention_multiplier, 0.0) > 0; }},
    {"jitter", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.router_jitter, 0.0) > 0; }},
    {"limit of the activation", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.swiglu_limit, 1e9) > 0; }},
    {"clamped activation", [](LayerSpec& kind) { return std::exchange(kind.feed_forward.swiglu_limit, 0.0) > 0; }},
};

/// The same of what the whole model has.
struct WrongModel {
  const char* what;
  std::function<bool(ModelConfig& model)> edit;
};
const std::vector<WrongModel> kWrongModels = {
    {"layer norm", [](ModelConfig& model) { return std::exchange(model.layer_norm, false); }},
    {"bias of the head", [](ModelConfig& model) { return std::exchange(model.head_bias, false); }},
    {"multiplier of the embedding",
     [](ModelConfig& model) { return std::exchange(model.embedding_multiplier, 1) != 1; }},
    {"multiplier of the stream", [](ModelConfig& model) { return std::exchange(model.residual_multiplier, 1) != 1; }},
    {"scaling of the logits", [](ModelConfig& model) { return std::exchange(model.logits_scaling, 1) != 1; }},
};

TEST_P(FamilyOutputs, WouldShowAFeatureLeftOut) {
  const Golden golden("families/" + GetParam());

  for (const WrongModel& wrong : kWrongModels) {
    ModelConfig model = golden.checkpoint.model();
    if (!wrong.edit(model)) continue;

    EXPECT_GT(errors(golden, model).at("logits"), 4 * kUnits) << wrong.what;
  }

  for (const Wrong& wrong : kWrong) {
    ModelConfig model = golden.checkpoint.model();
    bool has = false;
    for (int kind = 0; kind < static_cast<int>(model.layers.kinds().size()); ++kind) {
      has |= wrong.edit(model.layers.kind(kind));
    }
    if (!has) continue;

    EXPECT_GT(errors(golden, model).at("logits"), 4 * kUnits) << wrong.what;
  }
}

INSTANTIATE_TEST_SUITE_P(Transformers, FamilyOutputs, ::testing::ValuesIn(testing::kGoldenFamilies),
                         [](const auto& parameter) { return parameter.param; });

INSTANTIATE_TEST_SUITE_P(Transformers, GoldenOutputs,
                         ::testing::Values("grouped", "tied_top1", "sharded_one_kv_head", "bfloat16_all_experts",
                                           "float16_tied"),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace shardproof::reference
