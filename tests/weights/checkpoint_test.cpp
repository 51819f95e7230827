#include "emu/weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace shardproof {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kGolden = fs::path(SHARDPROOF_SOURCE_DIR) / "tests" / "golden";

/// A copy of a golden checkpoint that a test may spoil.
class Copy {
 public:
  explicit Copy(const std::string& name)
      : path_(fs::temp_directory_path() /
              ("checkpoint_test_" + std::to_string(::getpid()) + "_" + std::to_string(counter_++))) {
    fs::copy(kGolden / name, path_);
  }
  ~Copy() { fs::remove_all(path_); }

  const fs::path& path() const { return path_; }

  std::string text(const std::string& file) const {
    std::ostringstream content;
    content << std::ifstream(path_ / file, std::ios::binary).rdbuf();
    return content.str();
  }
  void write(const std::string& file, const std::string& content) const {
    std::ofstream(path_ / file, std::ios::binary) << content;
  }
  /// Replaces the first occurrence of `from`, which must be there.
  void replace(const std::string& file, const std::string& from, const std::string& to) const {
    std::string content = text(file);
    const std::size_t position = content.find(from);
    ASSERT_NE(position, std::string::npos) << from;
    write(file, content.replace(position, from.size(), to));
  }

  /// The message with which the checkpoint is refused, or "" when it is not.
  std::string refusal() const {
    try {
      const Checkpoint checkpoint(path_);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "";
  }

 private:
  static inline int counter_ = 0;
  fs::path path_;
};

constexpr const char* kIndex = "model.safetensors.index.json";

TEST(Checkpoint, OpensEveryGoldenCheckpoint) {
  const Checkpoint grouped(kGolden / "grouped");
  const Checkpoint sharded(kGolden / "sharded_one_kv_head");
  const Checkpoint tied(kGolden / "tied_top1");
  const Checkpoint bfloat(kGolden / "bfloat16_all_experts");
  const Checkpoint half(kGolden / "float16_tied");

  EXPECT_EQ(grouped.model().layers[0].attention.kv_heads, 2);
  EXPECT_EQ(grouped.model().layers[0].attention.sliding_window, 4096);
  EXPECT_EQ(sharded.model().layers.size(), 3);
  EXPECT_EQ(sharded.model().layers[0].attention.rope.theta, 10000.0);
  EXPECT_TRUE(tied.model().tie_word_embeddings);
  EXPECT_EQ(bfloat.model().dtype, "bfloat16");
  EXPECT_EQ(half.model().dtype, "float16");
}

TEST(Checkpoint, SlicesAreThoseOfTheWholeTensor) {
  for (const char* name : {"grouped", "sharded_one_kv_head", "bfloat16_all_experts"}) {
    const Checkpoint checkpoint(kGolden / name);
    for (const WeightSpec& spec : all_weights(checkpoint.model())) {
      const std::vector<double> whole = checkpoint.tensor(spec.name);
      const Range rows{spec.rows / 3, spec.rows - spec.rows / 3}, cols{spec.cols / 2, spec.cols - spec.cols / 2};

      ops::Matrix<double> slice(rows.count, cols.count);
      checkpoint.read(spec, rows, cols, slice);

      ASSERT_EQ(whole.size(), static_cast<std::size_t>(spec.rows * spec.cols)) << spec.name;
      for (ops::Index i = 0; i < rows.count; ++i) {
        for (ops::Index j = 0; j < cols.count; ++j) {
          ASSERT_EQ(slice(i, j), whole[static_cast<std::size_t>((rows.begin + i) * spec.cols + cols.begin + j)]);
        }
      }
    }
  }
}

TEST(Checkpoint, ReadingAnUnknownNameThrows) {
  const Checkpoint checkpoint(kGolden / "grouped");

  EXPECT_THROW(checkpoint.tensor("model.layers.2.input_layernorm.weight"), std::out_of_range);
}

TEST(Checkpoint, RefusesADirectoryWithoutItsFiles) {
  const Copy no_config("grouped"), no_weights("grouped"), both("grouped");
  fs::remove(no_config.path() / "config.json");
  fs::remove(no_weights.path() / "model.safetensors");
  both.write(kIndex, "{}");

  EXPECT_THROW(Checkpoint("/nonexistent"), CheckpointError);
  EXPECT_THROW(Checkpoint(kGolden / "make_golden.py"), CheckpointError);
  EXPECT_THAT(no_config.refusal(), HasSubstr("config.json"));
  EXPECT_THAT(no_weights.refusal(), HasSubstr("neither model.safetensors and model.safetensors.index.json"));
  EXPECT_THAT(both.refusal(), HasSubstr("both"));
}

TEST(Checkpoint, RefusesAConfigThatIsNoModel) {
  const auto refusal = [](const std::string& from, const std::string& to) {
    const Copy copy("grouped");
    copy.replace("config.json", from, to);
    return copy.refusal();
  };

  EXPECT_EQ(refusal("\"use_cache\": true", "\"use_cache\": false"), "");
  EXPECT_THAT(refusal("\"hidden_size\": 32", "\"hidden_size\": -32"), HasSubstr("hidden_size"));
  EXPECT_THAT(refusal("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\""), HasSubstr("hidden_act"));
  EXPECT_THAT(refusal("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
              HasSubstr("num_key_value_heads: 3 does not divide the 4 query heads"));
  EXPECT_THAT(refusal("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 5"), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(refusal("\"num_attention_heads\": 4", "\"head_dim\": 7, \"num_attention_heads\": 4"),
              HasSubstr("head_dim: 7 is odd"));
  EXPECT_THAT(refusal("\"use_cache\": true", "\"use_cache\": true, \"use_cache\": true"), HasSubstr("twice"));
  EXPECT_THAT(refusal("}", ""), HasSubstr("config.json"));
}

TEST(Checkpoint, RefusesWeightsThatAreNotTheModels) {
  const auto refusal = [](const std::string& from, const std::string& to) {
    const Copy copy("grouped");
    copy.replace("config.json", from, to);
    return copy.refusal();
  };
  const Copy renamed("grouped");
  renamed.replace("model.safetensors", "model.norm.weight", "model.norm.weighs");

  EXPECT_THAT(refusal("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
              HasSubstr("\"model.layers.2.input_layernorm.weight\": is missing"));
  EXPECT_THAT(refusal("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 10000"), HasSubstr("model.layers.2."));
  EXPECT_THAT(refusal("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
              HasSubstr("is no weight of the model that config.json describes"));
  EXPECT_THAT(refusal("\"intermediate_size\": 48", "\"intermediate_size\": 47"),
              HasSubstr("w1.weight\".shape: [48, 32]; the config makes it [47, 32]"));
  EXPECT_THAT(refusal("\"vocab_size\": 64", "\"vocab_size\": 65"), HasSubstr("the config makes it [65, 32]"));
  EXPECT_EQ(refusal("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"), "");
  EXPECT_THAT(renamed.refusal(), HasSubstr("\"model.norm.weight\": is missing"));
}

TEST(Checkpoint, RefusesAnIndexThatIsNotOfItsFiles) {
  const std::string norm = R"("model.norm.weight": "model-00003-of-00003.safetensors")";
  const auto refusal = [](const std::string& from, const std::string& to) {
    const Copy copy("sharded_one_kv_head");
    copy.replace(kIndex, from, to);
    return copy.refusal();
  };
  const Copy missing("sharded_one_kv_head"), truncated("sharded_one_kv_head"), twice("sharded_one_kv_head");
  fs::remove(missing.path() / "model-00002-of-00003.safetensors");
  truncated.write("model-00002-of-00003.safetensors",
                  truncated.text("model-00002-of-00003.safetensors").substr(0, 5000));
  fs::copy_file(twice.path() / "model-00003-of-00003.safetensors", twice.path() / "model-00004-of-00003.safetensors");
  twice.replace(kIndex, norm, R"("model.norm.weight": "model-00004-of-00003.safetensors")");

  EXPECT_THAT(refusal(norm, R"("model.norm.weight": "model-00001-of-00003.safetensors")"),
              HasSubstr("\"model-00001-of-00003.safetensors\" has no such tensor"));
  EXPECT_THAT(refusal(norm, R"("model.norm.weight": "../model-00003-of-00003.safetensors")"),
              HasSubstr("in this directory is needed"));
  EXPECT_THAT(refusal(norm, R"("model.norm.weight": 3)"), HasSubstr("is needed"));
  EXPECT_THAT(refusal(norm, R"("model.other.weight": "model-00003-of-00003.safetensors")"),
              HasSubstr("has no such tensor"));
  EXPECT_THAT(refusal(norm, norm + "," + norm), HasSubstr("twice"));
  EXPECT_THAT(refusal(",\n    " + norm, ""), HasSubstr("lacks \"model.norm.weight\""));
  EXPECT_THAT(refusal("\"weight_map\"", "\"weights\""), HasSubstr("unknown key"));
  EXPECT_THAT(refusal("{", "[{"), HasSubstr(kIndex));
  EXPECT_THAT(missing.refusal(), HasSubstr("model-00002-of-00003.safetensors: cannot be opened"));
  EXPECT_THAT(truncated.refusal(), HasSubstr("model-00002-of-00003.safetensors"));
  EXPECT_THAT(twice.refusal(), HasSubstr("stands in"));
}

/// The message with which the weights cannot be read, or "" when they can.
std::string unreadable(const Checkpoint& checkpoint) {
  try {
    for (const WeightSpec& spec : all_weights(checkpoint.model())) {
      ops::Matrix<double> whole(spec.rows, spec.cols);
      checkpoint.read(spec, {0, spec.rows}, {0, spec.cols}, whole);
    }
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

TEST(Checkpoint, NoticesAFileThatChangesDuringTheRun) {
  const char* const weights = "model.safetensors";
  const Copy shorter("grouped"), longer("grouped"), overwritten("grouped"), replaced("grouped"), gone("grouped");
  const Checkpoint of_shorter(shorter.path()), of_longer(longer.path()), of_overwritten(overwritten.path()),
      of_replaced(replaced.path()), of_gone(gone.path());
  ASSERT_EQ(unreadable(of_shorter) + unreadable(of_overwritten), "");
  std::string text = overwritten.text(weights);
  text.back() = static_cast<char>(text.back() ^ 1);

  fs::resize_file(shorter.path() / weights, 4096);
  fs::resize_file(longer.path() / weights, text.size() + 1);
  overwritten.write(weights, text);
  replaced.write("new", text);
  fs::rename(replaced.path() / "new", replaced.path() / weights);
  fs::remove(gone.path() / weights);

  EXPECT_THAT(unreadable(of_shorter), HasSubstr("model.safetensors: changed during the run: it had "));
  EXPECT_THAT(unreadable(of_longer), HasSubstr("changed during the run: it had "));
  EXPECT_THAT(unreadable(of_overwritten), HasSubstr("changed during the run: it was written to"));
  EXPECT_THAT(unreadable(of_replaced), HasSubstr("another file took its place"));
  EXPECT_THAT(unreadable(of_gone), HasSubstr("model.safetensors: cannot be opened"));
}

TEST(Checkpoint, NamesFileTensorAndPlaceOfWhatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Copy copy("grouped");
    const SafetensorsFile file(copy.path() / "model.safetensors");
    const TensorEntry* const entry = file.header().find("model.layers.1.self_attn.k_proj.weight");
    ASSERT_NE(entry, nullptr);
    ASSERT_EQ(entry->type, TensorType::f32);
    std::string text = copy.text("model.safetensors");
    const auto element = static_cast<std::size_t>(3 * entry->cols() + 5);
    std::memcpy(text.data() + file.header().data_begin + entry->begin + element * sizeof bad, &bad, sizeof bad);
    copy.write("model.safetensors", text);

    const std::string message = unreadable(Checkpoint(copy.path()));

    EXPECT_THAT(message, HasSubstr("model.safetensors: \"model.layers.1.self_attn.k_proj.weight\"[3, 5]: "));
    EXPECT_THAT(message, HasSubstr("a finite number is needed"));
  }
}

TEST(CompareModels, NamesEachFieldThatDiffers) {
  const Checkpoint checkpoint(kGolden / "grouped");
  ModelConfig plan = checkpoint.model();
  plan.dtype = "float16";
  const std::vector<Problem> same = compare_models(plan, checkpoint.model());
  plan.layers.kind(0).attention.heads = 8;
  plan.rms_norm_eps = 1e-6;

  const std::vector<Problem> different = compare_models(plan, checkpoint.model());

  EXPECT_TRUE(same.empty());
  ASSERT_EQ(different.size(), 2U);
  EXPECT_EQ(different[0].field, "model.num_attention_heads");
  EXPECT_EQ(different[0].message, "8; the checkpoint has 4");
  EXPECT_EQ(different[1].field, "model.rms_norm_eps");
}

}  // namespace
}  // namespace shardproof
