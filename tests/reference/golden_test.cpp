// Holds the reference to what Hugging Face Transformers computes in float32 (tests/golden/make_golden.py).
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
#include <vector>

#include "emu/input/json_value.h"
#include "emu/reference/reference.h"
#include "emu/weights/checkpoint.h"
#include "emu/weights/safetensors.h"

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
  const auto weights = [&](const std::string& name, std::vector<double>& values) {
    values = golden.checkpoint.tensor(name);
    if (change) values = change(name, std::move(values));
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

INSTANTIATE_TEST_SUITE_P(Transformers, GoldenOutputs,
                         ::testing::Values("grouped", "tied_top1", "sharded_one_kv_head", "bfloat16_all_experts",
                                           "float16_tied"),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace shardproof::reference
