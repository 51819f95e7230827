// Why a run went wrong, as its error shows.
#pragma once

#include <string>

namespace shardproof {

struct Cause {
  std::string name;      ///< one of a fixed list (diagnose.h), snake_case; "unknown" when no signature fits
  std::string evidence;  ///< one sentence with the figures
};

}  // namespace shardproof
