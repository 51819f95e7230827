// The two kinds of tensors that a program runs on: numbers, or shapes in their place.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/matrix.h"

namespace shardproof {

/// In place of a scalar: the program is run dry.
struct ShapeOnly {};

/// What stands for a matrix in a dry run: it has a shape and no elements.
class ShapeMatrix {
 public:
  ShapeMatrix() = default;
  ShapeMatrix(std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols) {}
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t size() const { return rows_ * cols_; }
  ShapeMatrix copy() const { return *this; }

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

template <class T>
inline constexpr bool kIsDry = std::is_same_v<T, ShapeOnly>;

template <class T>
using TensorOf = std::conditional_t<kIsDry<T>, ShapeMatrix, ops::Matrix<std::conditional_t<kIsDry<T>, float, T>>>;

}  // namespace shardproof
