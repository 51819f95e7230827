#include "emu/judge/rounding/run_tensors.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

namespace shardproof::rounding {
namespace {

template <class T>
ops::Matrix<T>& values_of(RunTensor& tensor) {
  if constexpr (std::is_same_v<T, float>) {
    return tensor.floats;
  } else if constexpr (std::is_same_v<T, double>) {
    return tensor.doubles;
  } else {
    return tensor.ids;
  }
}

}  // namespace

void RunTensors::put(std::size_t tap, const Placement& placement, const TapValues& part) {
  std::visit(
      [&]<class T>(ops::MatrixView<const T> values) {
        if constexpr (std::is_same_v<T, std::int64_t>) {
          throw std::logic_error("the model's ids are of 32 bits");
        } else {
          RunTensor& tensor = tensors_[tap];
          ops::Matrix<T>& whole = values_of<T>(tensor);
          if (whole.size() == 0) {
            tensor.rows = placement.rows;
            tensor.cols = placement.cols;
            // Rows that no run has are never put.
            whole = ops::Matrix<T>::zeros(placement.rows, placement.cols);
          }
          for (std::int64_t i = 0; i < values.rows; ++i) {
            std::ranges::copy(values.row(i), whole.row(placement.row(i)).data() + placement.col_part.begin);
          }
        }
      },
      part);
}

void RunTensors::clear_row(std::size_t tap, std::int64_t row) {
  RunTensor& tensor = tensors_[tap];
  if (tensor.floats.size() > 0) std::ranges::fill(tensor.floats.row(row), 0.0F);
  if (tensor.doubles.size() > 0) std::ranges::fill(tensor.doubles.row(row), 0.0);
  if (tensor.ids.size() > 0) std::ranges::fill(tensor.ids.row(row), 0);
}

Input RunTensors::as_double(std::size_t tap) const {
  return as_double(tap, {0, tensors_[tap].cols});
}

Input RunTensors::as_double(std::size_t tap, Range cols) const {
  const RunTensor& from = tensors_[tap];
  Input to(from.rows, cols.count);
  if (from.errors.size() > 0) to.errors.resize(to.values.size());
  for (std::int64_t row = 0; row < from.rows; ++row) {
    for (std::int64_t i = 0; i < cols.count; ++i) {
      to.row(row)[i] = from.at(row, cols.begin + i);
      if (to.derived()) to.errors[static_cast<std::size_t>(row * cols.count + i)] = from.errors(row, cols.begin + i);
    }
  }
  return to;
}

}  // namespace shardproof::rounding
