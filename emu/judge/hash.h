// Hashes of bits: of a tap's values, of what determines them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "emu/plan/random.h"

namespace shardproof {

/// Folds values one after another into a hash; what came before decides what the next one does.
class Hasher {
 public:
  void add(std::uint64_t bits) { state_ = mix64(state_ + 0x9e3779b97f4a7c15U + bits); }
  void add(std::int64_t value) { add(static_cast<std::uint64_t>(value)); }
  void add(int value) { add(static_cast<std::int64_t>(value)); }
  void add(bool value) { add(std::int64_t{value}); }
  void add(double value) { add(std::bit_cast<std::uint64_t>(value + 0.0)); }  // -0 + 0 is +0
  std::uint64_t result() const { return state_; }

 private:
  std::uint64_t state_ = 0;
};

/// A hash of the values' bits that depends on their order; -0 counts as +0.
inline std::uint64_t hash_bits(std::span<const double> values) {
  Hasher hasher;
  for (const double value : values) hasher.add(value);
  return hasher.result();
}

/// Square root of the sum of squares, summed in order.
inline double norm_of(std::span<const double> values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

}  // namespace shardproof
