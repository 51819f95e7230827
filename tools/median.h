// The middle of some values; of an even number of them the mean of the two in the middle.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace shardproof::tools {

/// There is at least one value.
inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace shardproof::tools
