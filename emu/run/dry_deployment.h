// What a dry run of one pass deploys: which tokens it has, and what came before them.
#pragma once

#include "emu/plan/deployment.h"
#include "emu/plan/plan.h"
#include "emu/run/dry_run.h"

namespace shardproof {

/// A pass of a serving plan is one over its prompts, or one after all that is run of its requests.
Deployment deployment_of(const Plan& plan, DryPass pass);

}  // namespace shardproof
