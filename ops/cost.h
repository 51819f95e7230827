// What an op does on paper: floating-point operations, and bytes that must move when every operand is read or written
// once. Each op's formula stands beside its declaration; tests, benchmarks and reports call the same functions.
#pragma once

namespace shardproof::ops {

struct Cost {
  double flops = 0;  // a multiply-add counts as two
  double bytes = 0;

  Cost& operator+=(const Cost& other) {
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
  friend Cost operator+(Cost a, const Cost& b) { return a += b; }
  friend Cost operator*(double factor, const Cost& cost) { return {factor * cost.flops, factor * cost.bytes}; }
  friend bool operator==(const Cost&, const Cost&) = default;
};

}  // namespace shardproof::ops
