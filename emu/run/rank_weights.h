// The slices of weights that one rank holds, by their row in the table of tensors.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "emu/model/tensors.h"
#include "emu/weights/store.h"

namespace shardproof {

template <class T>
class RankWeights {
 public:
  /// Throws std::out_of_range for what the rank does not hold; `expert` counts those that it holds of the layer.
  const WeightSlice<T>& operator()(Weight weight, int layer = -1, int expert = -1) const {
    const auto found = slices_.find(key(weight, layer, expert));
    if (found == slices_.end()) {
      throw std::out_of_range(expert < 0
                                  ? fmt::format("layer {}: the rank does not hold {}", layer, tensor_row(weight).name)
                                  : fmt::format("layer {}: the rank holds no expert {} of its own", layer, expert));
    }
    return found->second;
  }
  void add(Weight weight, int layer, int expert, WeightSlice<T> slice) {
    slices_.insert_or_assign(key(weight, layer, expert), std::move(slice));
  }

 private:
  static std::uint64_t key(Weight weight, int layer, int expert) {
    return static_cast<std::uint64_t>(layer + 1) << 40 | static_cast<std::uint64_t>(expert + 1) << 8 |
           static_cast<std::uint64_t>(weight);
  }
  std::unordered_map<std::uint64_t, WeightSlice<T>> slices_;
};

}  // namespace shardproof
