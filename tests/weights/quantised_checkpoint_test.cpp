// Checkpoints whose weights are in fp8, with a scale for each block of rows and columns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/random.h"
#include "emu/weights/checkpoint.h"
#include "emu/weights/safetensors_save.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr std::int64_t kBlock = 16;
const fs::path kUnquantised = fs::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden" / "families" / "deepseek_v3_biases";

/// Of a byte of E4M3, by its definition.
double value_of(std::uint8_t byte) {
  const int exponent = byte / 8 % 16, mantissa = byte % 8;
  const double magnitude =
      exponent == 0 ? mantissa * std::pow(2.0, -9) : (1 + mantissa / 8.0) * std::pow(2.0, exponent - 7);
  return byte >= 128 ? -magnitude : magnitude;
}

/// Bytes and scales of a weight, made from its name. Values stay within +-15, so that products are those of a model.
struct Quantised {
  explicit Quantised(const WeightSpec& spec)
      : rows(spec.rows), cols(spec.cols), across((cols + kBlock - 1) / kBlock), down((rows + kBlock - 1) / kBlock) {
    const std::uint64_t key = random_key(1, spec.name);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const auto drawn = static_cast<std::uint8_t>(random_below(key, static_cast<std::uint64_t>(i), 160));
      bytes.push_back(static_cast<std::uint8_t>(drawn < 80 ? drawn : 128 + drawn - 80));
    }
    for (std::int64_t i = 0; i < down * across; ++i) {
      scales.push_back(std::ldexp(1.0, -6 - static_cast<int>(random_below(key + 1, static_cast<std::uint64_t>(i), 3))));
    }
  }

  double at(std::int64_t row, std::int64_t col) const {
    return value_of(bytes[static_cast<std::size_t>(row * cols + col)]) *
           scales[static_cast<std::size_t>(row / kBlock * across + col / kBlock)];
  }

  std::int64_t rows, cols, across, down;
  std::vector<std::uint8_t> bytes;
  std::vector<double> scales;
};

/// The golden checkpoint with the weights that quantization_config speaks of in fp8.
class Fp8Checkpoint {
 public:
  Fp8Checkpoint() : path_(fs::temp_directory_path() / ("quantised_checkpoint_test_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
    std::ostringstream config;
    config << std::ifstream(kUnquantised / "config.json").rdbuf();
    std::string text = config.str();
    text.insert(text.find('{') + 1,
                R"("quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},)");
    std::ofstream(path_ / "config.json") << text;
  }
  ~Fp8Checkpoint() { fs::remove_all(path_); }
  Fp8Checkpoint(const Fp8Checkpoint&) = delete;
  Fp8Checkpoint& operator=(const Fp8Checkpoint&) = delete;

  const fs::path& path() const { return path_; }

  /// Writes the weights, less those whose names end so.
  void write(const std::string& less) const {
    const Checkpoint golden(kUnquantised);
    ModelConfig model = golden.model();
    model.quantisation = {.method = "fp8", .format = QuantisedFormat::fp8};
    std::vector<TensorBytes> tensors;
    for_each_weight(model, [&](const WeightSpec& spec) {
      const TensorPlace lies = place_in_checkpoint(model, spec);
      if (!is_quantised(model, spec.weight)) {
        tensors.push_back(tensor_of(lies.name, TensorType::f32, lies.shape, golden.tensor(lies.name)));
        return;
      }
      const Quantised quantised(spec);
      const auto* begin = reinterpret_cast<const std::byte*>(quantised.bytes.data());
      tensors.push_back({.name = lies.name,
                         .type = TensorType::f8_e4m3,
                         .shape = lies.shape,
                         .bytes = {begin, begin + quantised.bytes.size()}});
      tensors.push_back(
          tensor_of(lies.name + "_scale_inv", TensorType::f32, {quantised.down, quantised.across}, quantised.scales));
    });
    if (!less.empty()) std::erase_if(tensors, [&](const TensorBytes& tensor) { return tensor.name.ends_with(less); });
    std::ofstream(path_ / "model.safetensors", std::ios::binary) << safetensors_file(tensors);
  }

 private:
  fs::path path_;
};

TEST(QuantisedCheckpoint, IsReadAsItsValuesTimesTheScalesOfTheirBlocks) {
  const Fp8Checkpoint files;
  files.write("");
  const Checkpoint checkpoint(files.path());

  int quantised = 0;
  for_each_weight(checkpoint.model(), [&](const WeightSpec& spec) {
    if (!is_quantised(checkpoint.model(), spec.weight)) return;
    ++quantised;
    const Quantised expected(spec);
    // A slice that begins and ends inside of blocks.
    const Range rows{spec.rows / 3, spec.rows - spec.rows / 3}, cols{1, spec.cols - 2};
    ops::Matrix<double> values(rows.count, cols.count);
    checkpoint.read(spec, rows, cols, values);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      for (std::int64_t j = 0; j < cols.count; ++j) {
        ASSERT_EQ(values(i, j), expected.at(rows.begin + i, cols.begin + j)) << spec.name << " " << i << " " << j;
      }
    }
  });

  EXPECT_GT(quantised, 30);
}

TEST(QuantisedCheckpoint, PassesVerifyInTheFormatOfTheRun) {
  const Fp8Checkpoint files;
  files.write("");
  const Checkpoint checkpoint(files.path());
  Plan plan;
  plan.model = checkpoint.model();
  plan.parallel = {.dp = 2, .ep = 2};
  plan.workload.lengths = {7, 1, 4, 9};

  for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
    const VerifyReport report = verify(plan, {.format = format, .threads = 2, .weights = &checkpoint});

    EXPECT_EQ(report.verdict, Verdict::pass) << (report.problems.empty() ? "" : report.problems[0].message);
  }
}

TEST(QuantisedCheckpoint, IsRefusedWithoutTheScalesOfAWeight) {
  const Fp8Checkpoint files;
  files.write("layers.1.self_attn.o_proj.weight_scale_inv");

  try {
    const Checkpoint checkpoint(files.path());
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr("model.layers.1.self_attn.o_proj.weight_scale_inv"));
  }
}

TEST(QuantisedCheckpoint, IsRefusedWhereItsConfigSaysNothingOfIt) {
  const Fp8Checkpoint files;
  files.write("");
  fs::copy_file(kUnquantised / "config.json", files.path() / "config.json", fs::copy_options::overwrite_existing);

  try {
    const Checkpoint checkpoint(files.path());
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr("F8_E4M3"));
  }
}

}  // namespace
}  // namespace shardproof
