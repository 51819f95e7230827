// Holds somebody's dump (dump.h) to the reference: each tap that is there to the float64 result of its own op on what
// the dump itself has, within the bounds of a rounding profile (rounding/op_rules.h).
//
// What is not there is computed, within bounds that are carried on, where a judgement needs it and it can be; what
// nothing can be held against is named and not judged.
#pragma once

#include "emu/judge/dump.h"
#include "emu/judge/report.h"
#include "emu/judge/rounding/bounds.h"
#include "emu/plan/runnable.h"
#include "emu/weights/store.h"

namespace shardproof {

struct JudgeOptions {
  rounding::RoundingProfile profile = rounding::RoundingProfile::eager;
  const WeightSource* weights = nullptr;  ///< default: GeneratedWeights of the workload's seed
  bool diagnose = true;                   ///< name the cause of a divergence
};

/// The plan, at the size of the run, with the dump's token ids in place of its own. Throws DumpError as Dump::hand_in.
VerifyReport judge_dump(const RunnablePlan& plan, const Dump& dump, const JudgeOptions& options = {});

}  // namespace shardproof
