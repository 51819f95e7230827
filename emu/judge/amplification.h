// How far rounding carries through a whole model, sharded and not.
//
// Three runs on the same weights and tokens: the unsharded float64 reference, the program on one rank in the format,
// and the program on the plan's ranks. A router is a step function: where two logits lie close, rounding decides, and
// from there on another model is run. So when any choice differs from the reference's, both runs are repeated with the
// reference's choices in their place (ids and slots; weights stay the run's own), and the errors are those of the
// repetitions.
#pragma once

#include "emu/judge/amplification_report.h"
#include "emu/judge/verify.h"

namespace shardproof {

/// In options.format, a float format. Never throws for what the plan's run does wrong: that is the report.
AmplificationReport measure_amplification(const RunnablePlan& plan, const VerifyOptions& options);

}  // namespace shardproof
