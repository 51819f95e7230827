// The whole tensors of a run in a float format, put together from the ranks' parts while their judge needs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
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
  /// Of a tensor that the run did not hand in and that was computed from what it did: how far each value, which is in
  /// `doubles`, may be off from what the run had. Else empty.
  ops::Matrix<double> errors = {};

  /// Of a tensor that is no ids.
  double at(std::int64_t row, std::int64_t col) const {
    return floats.size() > 0 ? static_cast<double>(floats(row, col)) : doubles(row, col);
  }
};

/// A tensor of the run, or what is known of it, as the reference computes with it.
struct Input : reference::Tensor {
  Input() = default;
  Input(std::int64_t rows_, std::int64_t cols_) : Tensor(rows_, cols_) {}
  explicit Input(reference::Tensor tensor) : Tensor(std::move(tensor)) {}

  std::vector<double> errors;  ///< as large as values; empty where these are the run's own

  bool derived() const { return !errors.empty(); }
  double error(std::int64_t r, std::int64_t col) const {
    return errors.empty() ? 0 : errors[static_cast<std::size_t>(r * cols + col)];
  }
};

/// By index of the expected tap. Different tensors may be used at the same time; who puts parts into one and who reads
/// it sees to that.
class RunTensors {
 public:
  explicit RunTensors(std::size_t taps) : tensors_(taps) {}

  /// Copies the part to its place.
  void put(std::size_t tap, const Placement& placement, const TapValues& part);
  /// Sets a row of a tensor of which some parts came to zeros.
  void clear_row(std::size_t tap, std::int64_t row);
  const RunTensor& at(std::size_t tap) const { return tensors_[tap]; }
  /// Its columns begin..begin+count, all by default, as the reference computes with them.
  Input as_double(std::size_t tap) const;
  Input as_double(std::size_t tap, Range cols) const;
  /// What a tensor that is not there was computed to be.
  void derive(std::size_t tap, RunTensor tensor) { tensors_[tap] = std::move(tensor); }
  /// Gives the memory back.
  void drop(std::size_t tap) { tensors_[tap] = {}; }

 private:
  std::vector<RunTensor> tensors_;
};

}  // namespace shardproof::rounding
