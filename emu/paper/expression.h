// Arithmetic over quantities, as claims write it: "ep * tp * pp", "1 - world / 128", "active_expert_share(64)".
//
// Numbers, names of quantities (with arguments where they take some), + - * / and parentheses.
#pragma once

#include <string>
#include <string_view>

#include "emu/paper/quantities.h"

namespace shardproof {

struct ExpressionValue {
  std::string error;    ///< what is wrong with the text; empty when `value` is one
  QuantityValue value;  ///< its arithmetic spells the expression with every name's number beside it
  bool single = false;  ///< the text is one quantity: `value` is just what that quantity gives
};

/// Refused: syntax errors, unknown names (with the nearest known one), texts over 500 characters, deep nesting,
/// division by zero, arithmetic between two quantities that differ from rank to rank.
ExpressionValue evaluate_expression(std::string_view text, const Quantities& quantities);

}  // namespace shardproof
