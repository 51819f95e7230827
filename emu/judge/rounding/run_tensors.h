// The whole tensors of a run in a float format, put together from the ranks' parts while their judge needs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emu/reference/math.h"
#include "emu/run/tap.h"
#include "ops/matrix.h"

namespace shardproof::rounding {

/// One tensor: its values are of one of these types, as the run has them.
struct RunTensor {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  ops::Matrix<float> floats;
  ops::Matrix<double> doubles;
  ops::Matrix<std::int32_t> ids;

  /// Of a tensor that is no ids.
  double at(std::int64_t row, std::int64_t col) const {
    return floats.size() > 0 ? static_cast<double>(floats(row, col)) : doubles(row, col);
  }
};

/// By index of the expected tap. Different tensors may be used at the same time; who puts parts into one and who reads
/// it sees to that.
class RunTensors {
 public:
  explicit RunTensors(std::size_t taps) : tensors_(taps) {}

  /// Copies the part to its place.
  void put(std::size_t tap, const Placement& placement, const TapValues& part);
  const RunTensor& at(std::size_t tap) const { return tensors_[tap]; }
  /// Its columns begin..begin+count, all by default, as the reference computes with them.
  reference::Tensor as_double(std::size_t tap) const;
  reference::Tensor as_double(std::size_t tap, Range cols) const;
  /// Gives the memory back.
  void drop(std::size_t tap) { tensors_[tap] = {}; }

 private:
  std::vector<RunTensor> tensors_;
};

}  // namespace shardproof::rounding
