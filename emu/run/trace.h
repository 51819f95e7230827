// What a rank did: its computations and its calls, in program order, and the weights that it holds.
//
// Figures on paper, the deployment graph, traffic, memory and time are folds over these records, whether a run with
// numbers made them or a dry run (dry_run.h), so that they cannot drift from what is executed. A run that nobody asks
// for records keeps none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "collectives/types.h"
#include "emu/model/tensors.h"
#include "emu/plan/mesh.h"
#include "emu/run/op.h"

namespace shardproof {

/// Of a call that is under way while its rank does something else, there are two records.
enum class CallPhase : std::int8_t {
  whole,    ///< the rank waits for it at once
  issued,   ///< it goes on; the record says what moves
  awaited,  ///< it waits for the first of the axis that it has issued and not awaited; nothing more moves
};

/// One op of one rank: a computation, or a call over the rank's group of one axis.
struct OpRecord {
  Op op{};
  bool call = false;
  std::int32_t layer = -1;  ///< -1 outside the layers
  std::int32_t microbatch = 0;
  std::int32_t expert = -1;  ///< its place among the rank's experts, where the op belongs to one
  std::int64_t rows = 0;     ///< shape of the result
  std::int64_t cols = 0;
  // Of a computation.
  double flops = 0;
  double bytes = 0;  ///< read and written, in the run's format
  double past = 0;   ///< of attention: tokens of its sequences that came before the rows, and are looked at; over dcp,
                     ///< those of all of them that the rank keeps
  // Of a call.
  CallPhase phase{};
  Axis axis{};
  Operation operation{};
  std::int32_t group_size = 0;
  std::int32_t peer = -1;     ///< the other rank of send and recv, by its place in the group
  std::int32_t width = 0;     ///< bytes of an element: of the run's format, or 8 of a count
  std::int64_t elements = 0;  ///< of this rank's input (of its output for recv)
  std::int64_t received = 0;  ///< of its output
  std::int64_t kept = 0;      ///< of its input, what stays on the rank: its own part of an all-to-all or reduce-scatter

  bool operator==(const OpRecord&) const = default;
};

/// One weight slice that a rank holds.
struct WeightRecord {
  Weight weight{};
  std::int32_t layer = -1;
  std::int32_t expert = -1;  ///< in the model
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  bool operator==(const WeightRecord&) const = default;
};

/// Of a list that was folded (dry_run.h): ops[begin, end), as `layers` layers in a row do them one after another. The
/// first of these layers is `layer_shift` after the one that they were recorded in, and so the microbatch.
struct RecordRun {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::int32_t layers = 1;
  std::int32_t layer_shift = 0;
  std::int32_t microbatch_shift = 0;

  std::size_t records() const { return (end - begin) * static_cast<std::size_t>(layers); }
};

struct RankTrace {
  std::vector<OpRecord> ops;
  std::vector<WeightRecord> weights;
  std::vector<RecordRun> runs = {};  ///< of a folded list, in program order; none: every record stands for itself

  /// Its runs; of a list that is not folded, one with every record.
  std::vector<RecordRun> all_runs() const {
    return runs.empty() ? std::vector{RecordRun{.begin = 0, .end = ops.size()}} : runs;
  }
};

}  // namespace shardproof
