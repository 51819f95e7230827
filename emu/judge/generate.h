// Greedy decoding by the sharded program: prompts in, tokens out, each the one with the largest logit.
//
// A token is run only once it is known, so the program is run for every token of the longest output: the requests as
// far as they have got, prompts in chunks and decode steps over the cache as the plan schedules them. The sharded run
// of all tokens then has to choose the same ones once more, step by step.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emu/judge/report.h"
#include "emu/judge/verify.h"
#include "emu/plan/runnable.h"

namespace shardproof {

struct GeneratedToken {
  std::int32_t id = 0;      ///< with the largest logit; the lowest of equal ones
  std::int32_t second = 0;  ///< the next best
  double margin = 0;        ///< between their logits
  /// What the row's logits are off, at most, from those of the unsharded float64 model: rounding may have chosen where
  /// the margin is within twice as much.
  double error = 0;

  /// The run of all tokens chose `second` in its place.
  bool differs = false;

  bool close() const { return !(margin > 2 * error); }
};

struct Generation {
  /// The plan with the tokens that came out, of which the last of each request is not run; of a run that failed, its.
  Plan plan;
  std::vector<std::vector<GeneratedToken>> outputs;  ///< of each request
  std::optional<VerifyReport> failed;                ///< a run that was not right; then outputs end there

  /// Requests and places in their outputs of tokens that are too close to call.
  std::vector<std::pair<std::int64_t, std::int64_t>> close() const;
  /// A token that is not too close to call is another one in the run of all tokens.
  bool contradicts_itself() const;
};

/// The plan serves requests, with outputs. Prompts are its own token ids, else made from the seed. options.format is a
/// float format. Throws std::invalid_argument otherwise.
Generation generate(const RunnablePlan& plan, const VerifyOptions& options);

}  // namespace shardproof
