// Weights that are packed into words or bytes: as other programs read them (tests/golden/make_quantised_golden.py), and
// by the definition of their format.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/random.h"
#include "emu/weights/checkpoint.h"
#include "emu/weights/safetensors_save.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kGoldens = fs::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden";

/// The slice of a weight that begins and ends inside of words and groups.
ops::Matrix<double> middle_of(const Checkpoint& checkpoint, const WeightSpec& spec, Range rows, Range cols) {
  ops::Matrix<double> values(rows.count, cols.count);
  checkpoint.read(spec, rows, cols, values);
  return values;
}

class QuantisedGoldens : public ::testing::TestWithParam<const char*> {};

TEST_P(QuantisedGoldens, AreReadAsTheirOwnProgramsReadThem) {
  const fs::path folder = kGoldens / "quantised" / GetParam();
  const Checkpoint checkpoint(folder);
  const SafetensorsFile expected(folder / "dequantised.safetensors");

  std::size_t read = 0;
  std::map<std::string, int> met;
  for_each_weight(checkpoint.model(), [&](const WeightSpec& spec) {
    const TensorPlace lies = place_in_checkpoint(checkpoint.model(), spec);
    const TensorEntry* const entry = expected.header().find(lies.name);
    if (entry == nullptr) return;
    ++met[lies.name];
    const Range rows{3, spec.rows - 5}, cols{1, spec.cols - 2};
    const ops::Matrix<double> values = middle_of(checkpoint, spec, rows, cols);
    ops::Matrix<double> theirs(entry->rows(), entry->cols());
    expected.read<double>(*entry, {0, entry->rows()}, {0, entry->cols()}, theirs);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      for (std::int64_t j = 0; j < cols.count; ++j) {
        const std::int64_t row = rows.begin + i, col = cols.begin + j;
        const double value = lies.slice < 0
                                 ? theirs(row, col)
                                 : theirs(lies.slice, col * lies.shape.back() + lies.begin + row * lies.step);
        // They multiply in float32.
        ASSERT_NEAR(values(i, j), value, std::abs(value) * 0x1p-24) << spec.name << " " << row << " " << col;
        ++read;
      }
    }
  });

  EXPECT_EQ(met.size(), expected.header().tensors.size());
  EXPECT_GT(read, 1000u);
}

TEST_P(QuantisedGoldens, PassVerify) {
  const Checkpoint checkpoint(kGoldens / "quantised" / GetParam());
  Plan plan;
  plan.model = checkpoint.model();
  plan.parallel = {.dp = 2, .edp = 2};
  plan.workload.lengths = {7, 13, 4, 9};

  for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
    const VerifyReport report = verify(plan, {.format = format, .threads = 2, .weights = &checkpoint});

    EXPECT_EQ(report.verdict, Verdict::pass) << (report.problems.empty() ? "" : report.problems[0].message);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, QuantisedGoldens,
                         ::testing::Values("gpt_oss_mxfp4", "qwen3_moe_int4", "qwen3_moe_int4_zero_points",
                                           "qwen3_moe_int8_rows", "qwen3_moe_fp8_rows"),
                         [](const auto& test) { return std::string(test.param); });

constexpr std::int64_t kGroup = 16, kInWord = 8;

/// The four-bit values, zero points and scales of a weight, made from its name.
struct Drawn {
  explicit Drawn(const WeightSpec& spec) : key(random_key(1, spec.name)), groups((spec.cols + kGroup - 1) / kGroup) {}

  std::int64_t value(std::int64_t row, std::int64_t col) const { return draw(row * 1000 + col, 0, 16); }
  std::int64_t zero(std::int64_t row, std::int64_t group) const { return draw(row * 1000 + group, 1, 15) + 1; }
  double scale(std::int64_t row, std::int64_t group) const {
    return std::ldexp(1.0, -6 - static_cast<int>(draw(row * 1000 + group, 2, 3)));
  }
  std::int64_t draw(std::int64_t at, std::uint64_t what, std::uint64_t below) const {
    return static_cast<std::int64_t>(random_below(key + what, static_cast<std::uint64_t>(at), below));
  }

  std::uint64_t key;
  std::int64_t groups;
};

/// A matrix of words that values are put into four bits at a time.
struct Words {
  Words(std::int64_t rows, std::int64_t cols) : shape{rows, cols}, words(static_cast<std::size_t>(rows * cols)) {}
  void put(std::int64_t row, std::int64_t col, int place, std::int64_t value) {
    words[static_cast<std::size_t>(row * shape[1] + col)] |= static_cast<std::uint32_t>(value) << (4 * place);
  }
  TensorBytes tensor(std::string name) const {
    std::vector<std::byte> bytes(words.size() * 4);
    std::memcpy(bytes.data(), words.data(), bytes.size());
    return {.name = std::move(name), .type = TensorType::i32, .shape = shape, .bytes = std::move(bytes)};
  }

  std::vector<std::int64_t> shape;
  std::vector<std::uint32_t> words;
};

/// How GPTQ and AWQ write a weight.
struct Writer {
  const char* config;
  bool awq = false;
  std::int64_t less = 0;  // what is taken from each zero point
  bool shuffled = false;  // the groups of the columns

  std::int64_t group_of(std::int64_t col, const Drawn& drawn) const {
    return shuffled ? (col * 7 + 3) % drawn.groups : col / kGroup;
  }
  /// Four bits of the word that a row, or a column, is put into.
  int place_of(std::int64_t i) const {
    constexpr std::array<int, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};
    const auto in_word = static_cast<int>(i % kInWord);
    if (!awq) return in_word;
    return static_cast<int>(std::ranges::find(kOrder, in_word) - kOrder.begin());
  }

  void write(const WeightSpec& spec, const std::string& module, std::vector<TensorBytes>& tensors) const {
    const Drawn drawn(spec);
    Words values = awq ? Words(spec.cols, spec.rows / kInWord) : Words(spec.cols / kInWord, spec.rows);
    Words zeros(drawn.groups, spec.rows / kInWord);
    std::vector<double> scales, index;
    for (std::int64_t row = 0; row < spec.rows; ++row) {
      for (std::int64_t col = 0; col < spec.cols; ++col) {
        if (awq) values.put(col, row / kInWord, place_of(row), drawn.value(row, col));
        if (!awq) values.put(col / kInWord, row, place_of(col), drawn.value(row, col));
      }
      for (std::int64_t group = 0; group < drawn.groups; ++group) {
        zeros.put(group, row / kInWord, place_of(row), drawn.zero(row, group) - less);
      }
    }
    for (std::int64_t group = 0; group < drawn.groups; ++group) {
      for (std::int64_t row = 0; row < spec.rows; ++row) scales.push_back(drawn.scale(row, group));
    }
    tensors.push_back(values.tensor(module + ".qweight"));
    tensors.push_back(zeros.tensor(module + ".qzeros"));
    tensors.push_back(tensor_of(module + ".scales", TensorType::f16, {drawn.groups, spec.rows}, scales));
    if (awq) return;
    Words groups(1, spec.cols);
    for (std::int64_t col = 0; col < spec.cols; ++col) groups.put(0, col, 0, group_of(col, drawn));
    TensorBytes listed = groups.tensor(module + ".g_idx");
    listed.shape = {spec.cols};
    tensors.push_back(std::move(listed));
  }
};

class PackedCheckpoint {
 public:
  explicit PackedCheckpoint(const Writer& writer)
      : path_(fs::temp_directory_path() / ("packed_weights_test_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
    const fs::path golden_folder = kGoldens / "families" / "qwen3_moe_mixed";
    std::ostringstream config;
    config << std::ifstream(golden_folder / "config.json").rdbuf();
    std::string text = config.str();
    text.insert(text.find('{') + 1, std::string(R"("quantization_config": )") + writer.config + ",");
    std::ofstream(path_ / "config.json") << text;
    const Checkpoint golden(golden_folder);
    ModelConfig model = golden.model();
    model.quantisation.format = QuantisedFormat::int4;
    for_each_weight(model, [&](const WeightSpec& spec) {
      const TensorPlace lies = place_in_checkpoint(model, spec);
      if (is_quantised(model, spec.weight)) {
        writer.write(spec, lies.name.substr(0, lies.name.size() - std::string(".weight").size()), tensors_);
      } else {
        tensors_.push_back(tensor_of(lies.name, TensorType::f32, lies.shape, golden.tensor(lies.name)));
      }
    });
    write();
  }
  ~PackedCheckpoint() { fs::remove_all(path_); }
  PackedCheckpoint(const PackedCheckpoint&) = delete;
  PackedCheckpoint& operator=(const PackedCheckpoint&) = delete;

  const fs::path& path() const { return path_; }
  TensorBytes& tensor(const std::string& name) {
    return *std::ranges::find(tensors_, "model.layers.0.self_attn." + name, &TensorBytes::name);
  }
  void write() const { std::ofstream(path_ / "model.safetensors", std::ios::binary) << safetensors_file(tensors_); }

 private:
  fs::path path_;
  std::vector<TensorBytes> tensors_;
};

const Writer kGptq = {.config = R"({"quant_method": "gptq", "bits": 4, "group_size": 16})", .less = 1};
const Writer kAwq = {.config = R"({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"})",
                     .awq = true};

TEST(PackedWeights, AreReadByTheDefinitionOfTheirFormat) {
  Writer second = kGptq, shuffled = kGptq;
  second.config = R"({"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"})";
  second.less = 0;
  shuffled.shuffled = true;
  for (const Writer& writer : {kGptq, second, shuffled, kAwq}) {
    const PackedCheckpoint files(writer);
    const Checkpoint checkpoint(files.path());
    int quantised = 0;
    for_each_weight(checkpoint.model(), [&](const WeightSpec& spec) {
      if (!is_quantised(checkpoint.model(), spec.weight)) return;
      ++quantised;
      const Drawn drawn(spec);
      const Range rows{3, spec.rows - 5}, cols{1, spec.cols - 2};
      const ops::Matrix<double> values = middle_of(checkpoint, spec, rows, cols);
      for (std::int64_t i = 0; i < rows.count; ++i) {
        for (std::int64_t j = 0; j < cols.count; ++j) {
          const std::int64_t row = rows.begin + i, col = cols.begin + j, group = writer.group_of(col, drawn);
          const auto steps = static_cast<double>(drawn.value(row, col) - drawn.zero(row, group));
          ASSERT_EQ(values(i, j), steps * drawn.scale(row, group)) << writer.config << spec.name << row << " " << col;
        }
      }
    });
    EXPECT_GT(quantised, 30) << writer.config;
  }
}

/// What opening the checkpoint, or reading the first layer's queries from it, says.
std::string complaint(const fs::path& folder) {
  try {
    const Checkpoint checkpoint(folder);
    for_each_weight(checkpoint.model(), [&](const WeightSpec& spec) {
      if (spec.weight == Weight::attention_q) middle_of(checkpoint, spec, {0, spec.rows}, {0, spec.cols});
    });
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "none";
}

TEST(PackedWeights, AreRefusedInAPackingThatIsNotRead) {
  Writer gemv = kAwq;
  gemv.config = R"({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv"})";
  const PackedCheckpoint files(gemv);

  EXPECT_THAT(complaint(files.path()), HasSubstr("packed as quantization_config's \"gemv\" says; gemm is read"));
}

TEST(PackedWeights, AreRefusedWithoutTheZeroPointsThatTheConfigSays) {
  const fs::path golden = kGoldens / "quantised" / "qwen3_moe_int4";
  const fs::path folder = fs::temp_directory_path() / ("packed_weights_zero_" + std::to_string(::getpid()));
  fs::copy(golden, folder);
  std::ostringstream config;
  config << std::ifstream(folder / "config.json").rdbuf();
  std::string text = config.str();
  const std::string symmetric = "\"symmetric\": true";
  text.replace(text.find(symmetric), symmetric.size(), "\"symmetric\": false");
  std::ofstream(folder / "config.json") << text;

  EXPECT_THAT(complaint(folder), HasSubstr(".weight_zero_point\": is missing"));
  fs::remove_all(folder);
}

TEST(PackedWeights, AreRefusedWhereATensorIsNotWhatTheConfigMakesIt) {
  PackedCheckpoint files(kGptq);
  const auto with = [&](const std::string& name, auto change) {
    TensorBytes& tensor = files.tensor(name);
    const TensorBytes before = tensor;
    change(tensor);
    files.write();
    tensor = before;
    return complaint(files.path());
  };

  EXPECT_EQ(with("q_proj.qweight", [](TensorBytes&) {}), "none");
  EXPECT_THAT(with("q_proj.qweight", [](TensorBytes& tensor) { std::ranges::reverse(tensor.shape); }),
              HasSubstr("q_proj.qweight\".shape: [32, 4]; the config makes it [4, 32]"));
  EXPECT_THAT(with("q_proj.scales", [](TensorBytes& tensor) { tensor.name += "s"; }),
              HasSubstr("q_proj.scales\": is missing; \"model.layers.0.self_attn.q_proj.weight\" is quantised"));
  EXPECT_THAT(with("q_proj.qzeros", [](TensorBytes& tensor) { tensor.type = TensorType::f32; }),
              HasSubstr("q_proj.qzeros\".dtype: F32; I32 is needed"));
  EXPECT_THAT(with("q_proj.g_idx", [](TensorBytes& tensor) { tensor.bytes[4] = std::byte{9}; }),
              HasSubstr("q_proj.g_idx\": group 9; 32 columns in groups of 16 have the groups 0 to 1"));
  EXPECT_THAT(with("q_proj.qzeros", [](TensorBytes& tensor) { tensor.bytes[0] = std::byte{0x3f}; }),
              HasSubstr("q_proj.qzeros\": 15 of row 0, group 0: a zero point of 16 or of 0"));
}

}  // namespace
}  // namespace shardproof
