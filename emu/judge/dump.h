// A dump: what the ranks of somebody's run made of its taps, as they wrote it.
//
// A folder of .safetensors files, rank_0.safetensors to one for every rank of the plan, or one file for all, in a
// folder or by itself. A tensor is called as its tap is (emu/model/taps.h; DumpNames for other names). A rank's file
// holds the rank's part: the columns that its layout says, and of its tokens the rows of every microbatch, one after
// another. Where a program replicates what ours splits, it may hold more: all rows that the rank's attention sees, all
// columns. A file for all holds whole tensors. Dims before the last may be folded or not: [batch, sequence, hidden] is
// [tokens, hidden], and [tokens, heads, head_dim] is too.
// The partial sums of a product with a bias are those before their reduction, the first rank's with the bias. Beside
// the taps:
//   tokens      token ids, of the batch or of the rank's rows; also called input_ids
//   NAME.rows   of the tensor NAME: which row of the whole tensor each of its rows is, where they are in no such order
//
// Values are F64, F32, F16 or BF16, ids I64 or I32. A tensor may be wider than the run's format, not narrower.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "emu/judge/dump_names.h"
#include "emu/judge/expected.h"
#include "emu/plan/deployment.h"
#include "emu/plan/runnable.h"
#include "emu/run/tap.h"
#include "emu/weights/safetensors.h"
#include "ops/format.h"

namespace shardproof {

/// Values that no dump may hold: what() names file, tensor and place.
class DumpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The part of a tensor in a file that one rank has made, and where it lies in the whole tensor.
struct DumpBlock {
  int rank = 0;
  std::vector<std::int64_t> rows;       ///< of the whole tensor
  Range cols;                           ///< of the whole tensor
  std::vector<std::int64_t> file_rows;  ///< where these are in the file's
  std::int64_t file_col = 0;            ///< and the first of the columns
};

struct DumpTensor {
  TapId tap;
  std::size_t index = 0;  ///< among the taps of the plan
  const SafetensorsFile* file = nullptr;
  TensorEntry entry;  ///< as a matrix
  std::vector<DumpBlock> blocks;
};

class Dump {
 public:
  /// The taps of the plan, inner ones too, in program order: their shapes.
  const ExpectedTaps& taps() const { return *taps_; }
  /// Of each of them, whether the dump has it.
  std::vector<bool> present() const;
  /// What values are stored in at the narrowest.
  ops::Format format() const { return format_; }
  /// Of the whole batch, if the dump has them.
  const std::optional<std::vector<std::int32_t>>& token_ids() const { return token_ids_; }
  const std::vector<std::string>& files() const { return file_names_; }
  /// Tensors that are steps which this model takes in one with others, by name: nothing is judged of them.
  const std::vector<Problem>& unused() const { return unused_; }

  /// Hands every part to the sink, in program order. Throws DumpError for a value that is no number, or an expert that
  /// the model does not have, and CheckpointError for a file that changes.
  void hand_in(TapSink& sink) const;

 private:
  friend class DumpReader;

  std::shared_ptr<const ExpectedTaps> taps_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<std::string> file_names_;
  std::vector<Problem> unused_;
  std::vector<DumpTensor> tensors_;    ///< in program order
  std::vector<std::int64_t> experts_;  ///< by layer, how many there are to choose from
  ops::Format format_ = ops::Format::fp32;
  std::optional<std::vector<std::int32_t>> token_ids_;
};

struct OpenedDump {
  std::optional<Dump> dump;  ///< empty exactly when there are problems
  std::vector<Problem> problems;
};

/// `format`: what the run computed in; none: the narrowest type of its values. The plan's lengths are those of the run.
/// Throws CheckpointError for a file that cannot be read.
OpenedDump open_dump(const std::string& path, const RunnablePlan& plan, const DumpNames& names,
                     std::optional<ops::Format> format = std::nullopt);

}  // namespace shardproof
