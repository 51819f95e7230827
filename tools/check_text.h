// What `check` prints for people.
#pragma once

#include <string>

#include "emu/paper/check.h"

namespace shardproof::tools {

struct CheckTextOptions {
  bool all_quantities = false;  ///< also those that are zero
};

/// The report of a valid plan: mesh, GPUs, quantities, claims, verdict.
std::string check_text(const CheckReport& report, const CheckTextOptions& options);

/// Every quantity with unit and formula.
std::string quantity_list();

}  // namespace shardproof::tools
