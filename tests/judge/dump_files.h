// A dump of our own run on disk, which tests edit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/plan.h"
#include "emu/weights/safetensors_save.h"

namespace shardproof::testing {

struct EditableTensor {
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape;
  std::vector<double> values;          ///< of numbers
  std::vector<std::int64_t> ids = {};  ///< of ids
  double& at(std::int64_t row, std::int64_t col) { return values[static_cast<std::size_t>(row * shape[1] + col)]; }
};

class DumpFiles {
 public:
  /// Runs the plan in the format and keeps what the ranks tap. The folder is the test's own.
  DumpFiles(const Plan& plan, ops::Format format, const WeightSource* weights = nullptr);

  /// By rank, by name.
  std::map<int, std::map<std::string, EditableTensor>> ranks;
  const std::filesystem::path& folder() const { return folder_; }
  std::string file(int rank) const { return (folder_ / ("rank_" + std::to_string(rank) + ".safetensors")).string(); }
  /// Writes all ranks, and nothing else is in the folder.
  void write() const;
  /// Of a run on one rank: the same as one file of that name.
  void write_whole(const std::string& name) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace shardproof::testing
