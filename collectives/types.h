// The words of a collective call: operation, element type, reduction, algorithm.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace shardproof {

enum class Operation : std::uint8_t {
  all_reduce,
  all_gather,
  reduce_scatter,
  all_to_all,
  broadcast,
  reduce,
  barrier,
  send,
  recv,
  exchange
};

enum class ElementType : std::uint8_t { f32, f64, i8, u8, i16, u16, i32, u32, i64, u64 };

enum class Reduction : std::uint8_t { sum, max, min, average };

std::string_view to_string(Operation operation);
std::string_view to_string(ElementType type);
std::string_view to_string(Reduction reduction);
std::optional<Reduction> parse_reduction(std::string_view name);

/// send, recv, and their grouped form: a rendezvous of two ranks, not of the whole group.
constexpr bool is_point_to_point(Operation operation) {
  return operation >= Operation::send;
}

/// What collectives move: float, double, and the integers except bool.
template <class T>
concept Element = std::same_as<T, float> || std::same_as<T, double> ||(std::integral<T> && !std::same_as<T, bool>);

template <Element T>
constexpr ElementType element_type() {
  if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == 4 ? ElementType::f32 : ElementType::f64;
  } else {
    constexpr int kWidth = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    constexpr int kFirst = static_cast<int>(ElementType::i8);
    return static_cast<ElementType>(kFirst + 2 * kWidth + (std::is_unsigned_v<T> ? 1 : 0));
  }
}

/// Bytes of one element.
constexpr std::size_t size_of(ElementType type) {
  constexpr std::size_t kSizes[] = {4, 8, 1, 1, 2, 2, 4, 4, 8, 8};
  return kSizes[static_cast<std::size_t>(type)];
}

}  // namespace shardproof
