// What is wrong with something that came from outside: a plan, a model, a file.
#pragma once

#include <string>

namespace shardproof {

/// One thing that is wrong with it.
struct Problem {
  std::string field;      ///< dotted path in the file: "parallel.tp"
  std::string message;    ///< the value, the arithmetic, and what would be right
  std::string file = {};  ///< where it stands, when that is not the file that was asked for but one that it names
};

}  // namespace shardproof
