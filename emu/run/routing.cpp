#include "emu/run/routing.h"

#include <algorithm>

namespace shardproof {

StatedRouting StatedRouting::even(const ModelConfig& model) {
  return {[&model](int layer, std::int64_t row, std::span<std::int32_t> experts) {
            const std::int64_t count = model.layers[layer].feed_forward.num_experts;
            const std::int64_t first = row * std::ssize(experts) % count;
            for (std::size_t slot = 0; slot < experts.size(); ++slot) {
              experts[slot] = static_cast<std::int32_t>((first + static_cast<std::int64_t>(slot)) % count);
            }
          },
          true};
}

StatedRouting StatedRouting::of(const RoutingReplay& choices) {
  return {[&choices](int layer, std::int64_t row, std::span<std::int32_t> experts) {
            std::ranges::copy(choices[static_cast<std::size_t>(layer)].row(row), experts.begin());
          },
          false};
}

}  // namespace shardproof
