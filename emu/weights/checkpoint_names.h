// Where a weight lies in a checkpoint of a model's family: under which name, and where in that tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emu/model/tensors.h"

namespace shardproof {

/// Element (row, col) of the weight is that at [slice, begin + step * row, col] of the tensor, or, transposed, at
/// [slice, col, begin + step * row]; of a bias or another vector, at [slice, begin + step * col]. A tensor that is not
/// stacked has no slices.
struct TensorPlace {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t slice = -1;
  bool transposed = false;
  std::int64_t begin = 0;
  std::int64_t step = 1;
};

TensorPlace place_in_checkpoint(const ModelConfig& model, const WeightSpec& spec);

}  // namespace shardproof
