// On what a plan is projected: the flags that time and search share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "emu/plan/plan.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/projection.h"
#include "tools/file_uses.h"

namespace shardproof::tools {

struct HardwareFlags {
  std::string preset;
  std::string engine;
  std::string calibrate;
  std::string format;

  void add_to(CLI::App& command);
  /// Those of the program, and those of --calibrate. Throws UsageError.
  HardwareBook book(FileUses& files) const;
  /// Of what the plan states, and what is asked for. Throws UsageError.
  HardwareChoice choice(const HardwareBook& book, const Plan& plan) const;
  /// The model's own format and weights, or those asked for.
  ProjectionOptions options(const Plan& plan) const;
};

}  // namespace shardproof::tools
