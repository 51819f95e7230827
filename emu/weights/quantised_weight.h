// A weight that a checkpoint stores quantised: which tensors it is made of, and the values that they stand for.
//
// Of a weight W [rows, cols], whose row is an output feature, named NAME.weight; a group is weight_block columns of a
// row, or the whole row where weight_block is 0:
//
//   fp8                 W (F8_E4M3) times NAME.weight_scale_inv (DeepSeek's; of square blocks), or times
//                       NAME.weight_scale (of square blocks, of each row, or one of all)
//   mxfp4               NAME_blocks (U8 [.., rows, groups, 16]): two values of E2M1 in a byte, the lower half first;
//                       times 2^(e - 127), e of NAME_scales (U8 [.., rows, groups]). OCP Microscaling Formats 1.0,
//                       sections 5.2 and 6.3
//   compressed-tensors  NAME.weight_packed (I32 [rows, words]): a row's values, each 2^(bits-1) too large, the lowest
//                       bits first; NAME.weight_zero_point (I32 [words, groups]): the same down a column, 0 where it
//                       is absent; NAME.weight_g_idx (I32 [cols]): the group of a column, where it is not the next;
//                       NAME.weight_shape: rows, cols. (value - zero point) * NAME.weight_scale [rows, groups]
//   gptq                NAME.qweight (I32 [words, rows]): a row's values, the lowest bits first; NAME.qzeros
//                       (I32 [groups, words]): zero points, each one too small (not in "gptq_v2"); NAME.scales [groups,
//                       rows]; NAME.g_idx (I32 [cols]): the group of a column, where it is there
//   awq                 NAME.qweight (I32 [cols, words]) and NAME.qzeros (I32 [groups, words]) with the values of 8
//                       rows in a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits on; NAME.scales
//                       [groups, rows]
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "emu/model/tensors.h"
#include "emu/plan/partition.h"
#include "emu/weights/checkpoint_files.h"
#include "emu/weights/checkpoint_names.h"
#include "ops/matrix.h"

namespace shardproof {

/// How the tensors of a weight are packed.
enum class Packing : std::int8_t { fp8, mxfp4, compressed, gptq, awq };

class QuantisedWeight {
 public:
  /// Nothing where `files` hold the weight's values as they are, or nothing of it. Throws CheckpointError where a
  /// tensor that it is made of is missing, or is of another shape or type. `files` outlive it.
  static std::optional<QuantisedWeight> find(const ModelConfig& model, const WeightSpec& spec, const TensorPlace& lies,
                                             const CheckpointFiles& files);

  /// The names of all tensors that it is made of; the first holds the values.
  const std::vector<std::string>& tensors() const { return tensors_; }

  /// Writes values times scales, rounded to double once each. Throws CheckpointError where a tensor's number makes no
  /// sense (a group that is not there), and as SafetensorsFile::read does.
  void read(Range rows, Range cols, ops::MatrixView<double> out) const;

 private:
  QuantisedWeight(Packing packing, const ModelConfig& model, const WeightSpec& spec, const TensorPlace& lies,
                  const CheckpointFiles& files);

  void find_parts();
  void find_fp8();
  void find_mxfp4();
  void find_compressed();
  void find_gptq();
  void find_awq();
  /// Notes the tensor as a part. Throws where it is missing, or of a type or a shape that is none of these.
  void need(const std::string& name, std::initializer_list<TensorType> types,
            const std::vector<std::vector<std::int64_t>>& shapes);
  void check_stored_shape() const;
  bool has(const std::string& name) const { return files_->find(name) != nullptr; }
  [[noreturn]] void fail(const std::string& name, const std::string& message) const;
  /// Throws where the method packs its words in a way that is not read.
  void require_variant(std::initializer_list<const char*> read) const;

  std::int64_t groups() const;
  /// The group of each of these columns.
  std::vector<std::int64_t> groups_of(Range cols, const std::string& index) const;
  ops::Matrix<std::int64_t> integers(const std::string& name, Range rows, Range cols) const;
  ops::Matrix<double> numbers(const std::string& name, Range rows, Range cols) const;

  void read_fp8(Range rows, Range cols, ops::MatrixView<double> out) const;
  void read_mxfp4(Range rows, Range cols, ops::MatrixView<double> out) const;
  void read_compressed(Range rows, Range cols, ops::MatrixView<double> out) const;
  void read_transposed(Range rows, Range cols, ops::MatrixView<double> out) const;

  Packing packing_;
  const CheckpointFiles* files_;
  TensorPlace lies_;
  std::string name_;  // of lies_, without .weight
  std::int64_t rows_, cols_, block_;
  bool whole_rows_ = false;  // a group is a row
  int bits_ = 8;
  std::string variant_;  // of the packing
  bool zero_points_ = false;
  std::vector<std::string> tensors_;
};

}  // namespace shardproof
