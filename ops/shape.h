// The typed error of this folder: operands whose shapes do not fit together, or an index outside its range.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "ops/matrix.h"

namespace shardproof::ops {

/// Thrown by every op before it writes anything: names the op, the quantity, and both values.
class ShapeError : public std::invalid_argument {
 public:
  ShapeError(std::string_view op, std::string_view what, Index expected_, Index got_)
      : std::invalid_argument(std::string(op) + ": " + std::string(what) + " is " + std::to_string(got_) +
                              ", expected " + std::to_string(expected_)),
        expected(expected_),
        got(got_) {}

  Index expected;
  Index got;
};

inline void require_equal(std::string_view op, std::string_view what, Index expected, Index got) {
  if (expected != got) throw ShapeError(op, what, expected, got);
}

}  // namespace shardproof::ops
