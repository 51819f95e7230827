#include "collectives/algorithm.h"

namespace shardproof {

std::string_view to_string(Algorithm algorithm) {
  constexpr std::array<std::string_view, 5> kNames{"rank_order", "ring", "tree", "recursive_doubling", "hierarchical"};
  return kNames[static_cast<std::size_t>(algorithm)];
}

std::optional<Algorithm> parse_algorithm(std::string_view name) {
  for (const Algorithm algorithm : kAlgorithms) {
    if (to_string(algorithm) == name) return algorithm;
  }
  return std::nullopt;
}

}  // namespace shardproof
