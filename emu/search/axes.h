// What a search may choose of a plan: one table of axes, each with the values that are worth trying once those before
// it are chosen. A further degree is a row of the table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

struct SearchSpace {
  Plan base;     ///< model, hardware, workload; what no axis sets stays as it is
  int gpus = 1;  ///< every one is used
  /// Sequences of the whole batch, all like the first of the workload; none: the workload as it stands.
  std::vector<std::int64_t> batches = {};
};

struct SearchAxis {
  std::string_view name;
  /// Given the axes before it; none: no plan goes on from there.
  std::vector<std::int64_t> (*values)(const SearchSpace& space, const Plan& chosen);
  void (*set)(Plan& plan, std::int64_t value);
  std::int64_t (*get)(const Plan& plan);
  /// The text of a value; null: the number.
  std::string_view (*word)(std::int64_t value) = nullptr;
  /// What a rank's weights weigh is known from this one on.
  bool decides_weights = false;
  /// Its further values only matter where the ones before need too much memory, or on several stages.
  bool saves_memory = false;
  /// Its further values are only tried on the best of the rest, on the front, and where the first needs too much
  /// memory.
  bool refines = false;
};

std::span<const SearchAxis> search_axes();

/// A value for each axis.
using Choice = std::vector<std::int64_t>;

Plan plan_of(const SearchSpace& space, const Choice& choice);
Choice choice_of(const Plan& plan);
/// "tp 4, pp 2, dp 16, ep 64": values that change nothing (1, 0) are left out.
std::string describe(const Choice& choice);

}  // namespace shardproof
