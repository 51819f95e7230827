// A plan that the program can run and a verdict can be about: valid, executed as it stands, no part of its model left
// out. Whoever takes a RunnablePlan checks nothing again.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/plan/mesh.h"
#include "emu/plan/plan.h"
#include "emu/plan/scale.h"

namespace shardproof {

struct Runnable;

/// The only way to a RunnablePlan: the plan, or the complete list of what is in its way, of validate(), not_executed()
/// and not_computed().
Runnable make_runnable(Plan plan);

class RunnablePlan {
 public:
  const Plan& plan() const { return plan_; }
  const Mesh& mesh() const { return mesh_; }

  /// The plan at another size (scale.h), which is as runnable.
  RunnablePlan scaled(const ScaleOptions& options) const;
  /// The plan with the weights and tokens of another seed.
  RunnablePlan reseeded(std::uint64_t seed) const;

 private:
  friend Runnable make_runnable(Plan plan);
  explicit RunnablePlan(Plan plan);

  Plan plan_;
  Mesh mesh_;
};

struct Runnable {
  std::optional<RunnablePlan> plan;  ///< empty exactly when there are problems
  std::vector<Problem> problems;
};

/// The degrees that the program does not execute with such a workload yet.
std::vector<Problem> not_executed(const Plan& plan);

/// What the model's layers do and the program leaves out. It changes values, but neither shapes nor calls: figures on
/// paper and the deployment graph are right without it, a verdict would be on another model.
std::vector<Problem> not_computed(const Plan& plan);

}  // namespace shardproof
