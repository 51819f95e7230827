// One row of values as the ops take it.
#pragma once

#include <span>
#include <vector>

#include "ops/matrix.h"

namespace shardproof {

inline ops::MatrixView<const double> one_row(std::span<const double> x) {
  return {x.data(), 1, std::ssize(x)};
}
inline ops::MatrixView<double> one_row(std::vector<double>& x) {
  return {x.data(), 1, std::ssize(x)};
}

}  // namespace shardproof
