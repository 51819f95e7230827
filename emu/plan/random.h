// A counter-based generator: the value at an index is a function of (key, index), so any part is made without the rest.
#pragma once

#include <cstdint>
#include <string_view>

namespace shardproof {

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
constexpr std::uint64_t mix64(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

/// A key from a seed and a name (FNV-1a over the name, then mixed).
constexpr std::uint64_t random_key(std::uint64_t seed, std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return mix64(hash ^ mix64(seed + 0x9e3779b97f4a7c15U));
}

constexpr std::uint64_t random_at(std::uint64_t key, std::uint64_t index) {
  return mix64(key + (index + 1) * 0x9e3779b97f4a7c15U);
}

/// Uniform in 0..bound-1 (bound < 2^32; the bias of the multiplication is below bound * 2^-32).
constexpr std::uint64_t random_below(std::uint64_t key, std::uint64_t index, std::uint64_t bound) {
  return ((random_at(key, index) >> 32) * bound) >> 32;
}

}  // namespace shardproof
