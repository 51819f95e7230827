// A Hugging Face checkpoint: a directory with config.json and model.safetensors, or shards with
// model.safetensors.index.json. A rank reads its slices and nothing else; the files must stay as they are meanwhile.
//
// Weights that quantization_config quantises are read dequantised (quantised_weight.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/problem.h"
#include "emu/model/config.h"
#include "emu/weights/checkpoint_files.h"
#include "emu/weights/checkpoint_names.h"
#include "emu/weights/store.h"

namespace shardproof {

class Checkpoint final : public WeightSource {
 public:
  /// Opens the directory and checks it whole: the config is a model that can be emulated, every weight of it is there
  /// with its shape, and no other is, but for what changes nothing (the RoPE frequencies that older releases stored;
  /// the head when it is tied). Throws CheckpointError.
  explicit Checkpoint(const std::filesystem::path& directory);

  const ModelConfig& model() const { return model_; }

  /// Every file that it was read from.
  const std::vector<std::string>& files() const { return file_names_; }

  /// Throws std::out_of_range for a name that the checkpoint lacks, CheckpointError for a value that is not finite, and
  /// as SafetensorsFile::read does.
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override;
  /// The whole tensor of that name in the files, row-major. Throws std::out_of_range.
  std::vector<double> tensor(std::string_view name) const;

 private:
  void check_weights(const std::string& directory) const;
  void check_weight(const TensorPlace& needed, const std::string& directory) const;
  void read_stacked(const CheckpointFiles::Place& held, const TensorPlace& lies, bool vector, Range rows, Range cols,
                    ops::MatrixView<double> out) const;

  ModelConfig model_;
  std::vector<std::string> file_names_;
  CheckpointFiles files_;
};

/// Each field in which the model of a plan is not that of the checkpoint, as "model.<field>"; model_type and dtype may
/// differ.
std::vector<Problem> compare_models(const ModelConfig& plan, const ModelConfig& checkpoint);

}  // namespace shardproof
