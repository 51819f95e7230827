// The tensors of a Hugging Face checkpoint: of model.safetensors, or of the shards that model.safetensors.index.json
// names. What they mean, Checkpoint knows.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/plan/partition.h"
#include "emu/weights/safetensors.h"
#include "ops/matrix.h"

namespace shardproof {

/// The text of a file parsed, at most so large and so deep. Throws CheckpointError.
JsonValue read_checkpoint_json(const std::filesystem::path& path, std::uintmax_t max_bytes, int max_depth);

/// Safe to read from several threads.
class CheckpointFiles {
 public:
  struct Place {
    const SafetensorsFile* file = nullptr;
    const TensorEntry* entry = nullptr;
  };
  using Places = std::map<std::string, Place, std::less<>>;

  /// Throws CheckpointError: both ways to keep tensors or neither, an index that is not that of the files, a tensor
  /// that stands twice.
  CheckpointFiles(const std::filesystem::path& directory, TensorTypes types);

  /// Every file that was read.
  const std::vector<std::string>& names() const { return names_; }
  const Places& places() const { return places_; }
  /// Null where there is none of that name.
  const Place* find(std::string_view name) const;
  /// Throws std::out_of_range.
  const Place& at(std::string_view name) const;

  /// Writes a part of the tensor to `out`, as SafetensorsFile::read does.
  template <class T>
  void read(std::string_view name, Range rows, Range cols, ops::MatrixView<T> out) const {
    const Place& held = at(name);
    held.file->read<T>(*held.entry, rows, cols, out);
  }

 private:
  void add_file(const std::filesystem::path& path);
  void open_index(const std::filesystem::path& directory, const std::filesystem::path& index);

  TensorTypes types_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  Places places_;
};

}  // namespace shardproof
