// One op with operands of its own: run again and again to be timed, and checked once before.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "ops/format.h"
#include "tools/op_shape.h"

namespace shardproof::tools {

struct PreparedOp {
  std::function<void()> run;
  /// Holds elements of the result of the first run, of the first, the last and some other rows, to a sum in double from
  /// the definition, within the forward error bound of the format. Says what is wrong, or nothing.
  std::function<std::string()> wrong;
  std::span<std::byte> result;
};

/// Bytes of the operands, the result, and what the op allocates beside them.
double memory_of(const OpShape& shape, ops::Format format);

/// Operands in [-1, 1), stored in the format, the same at each call.
PreparedOp prepare_op(const OpShape& shape, ops::Format format);

}  // namespace shardproof::tools
