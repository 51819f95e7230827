#include "collectives/types.h"

#include <array>

namespace shardproof {

namespace {

constexpr std::array<std::string_view, 10> kOperations{"all_reduce", "all_gather", "reduce_scatter", "all_to_all",
                                                       "broadcast",  "reduce",     "barrier",        "send",
                                                       "recv",       "exchange"};
constexpr std::array<std::string_view, 10> kTypes{"f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"};
constexpr std::array<std::string_view, 4> kReductions{"sum", "max", "min", "average"};

}  // namespace

std::string_view to_string(Operation operation) {
  return kOperations[static_cast<std::size_t>(operation)];
}
std::string_view to_string(ElementType type) {
  return kTypes[static_cast<std::size_t>(type)];
}
std::string_view to_string(Reduction reduction) {
  return kReductions[static_cast<std::size_t>(reduction)];
}

std::optional<Reduction> parse_reduction(std::string_view name) {
  for (std::size_t i = 0; i < kReductions.size(); ++i) {
    if (kReductions[i] == name) return static_cast<Reduction>(i);
  }
  return std::nullopt;
}

}  // namespace shardproof
