// Which form of latent attention (ops/latent.h) a token is computed in: what program, reference and judge all go by.
//
// As in serving engines (vLLM's and SGLang's latent backends), a prompt is computed in the plain form, whatever it is
// cut into, and a token after it in the absorbed form, unless workload.latent_decode says otherwise. So the form of a
// token hangs on its position alone, and its bits on no schedule. (vLLM takes a prompt's chunk of one token for one
// after it; its bits there hang on the schedule.) Over cp, where attention is to whole keys, every token is plain. A
// decode step of a dry run (emu/run/dry_run.h) is of tokens after their prompts.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

/// Of tokens after a prompt, if there are any.
constexpr bool decodes_absorbed(const Parallel& parallel, const Workload& workload) {
  return parallel.cp == 1 && workload.latent_decode.value_or(LatentForm::absorbed) == LatentForm::absorbed;
}

/// By sequence, the position of its first absorbed token; its length, where it has none.
std::vector<std::int64_t> absorbed_from(const Parallel& parallel, const Workload& workload);

/// Some layer of the model, and some token of the workload, is absorbed.
bool has_absorbed(const Plan& plan);

/// By row of the batch; empty where none is.
std::vector<bool> absorbed_rows(const Plan& plan);

}  // namespace shardproof
