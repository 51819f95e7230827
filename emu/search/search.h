// The best plans for a model on so many GPUs.
//
// Every layout of the table of axes (axes.h) that is a valid plan and fits each rank's memory is projected by the
// virtual clock, at full scale. Layouts are ranked by the objective, those that miss a limit (SLO) behind those
// that do not; equally good ones by memory, then by their order in the table. Nothing is drawn at random and no layout
// that fits is passed over, with two exceptions: on one stage, more microbatches than fit need, which cannot win; and
// axes that refine (dispatch, overlap, dcp), which are tried on the best layouts of the others, on their front, and
// where their first values need too much memory, unless `exhaustive` asks for them on every layout.
//
// Throughput is that of an engine that takes batch after batch: with `output` tokens a request,
//   batch * output / (prefill + (output - 1) * time per output token),
// and without output, prompt tokens in the seconds of a prefill. The first token is that of the last request of a
// batch.
//
// A loser's reason is a difference of measured seconds: what the loser spends on each cause (timeline/causes.h) beyond
// the winner, per token where throughput is sought, else in the pass that counts. The largest is named.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "emu/search/axes.h"
#include "emu/timeline/causes.h"
#include "emu/timeline/projection.h"

namespace shardproof {

enum class Objective { throughput, output_token, first_token };
/// "throughput", "tpot", "ttft".
std::string_view to_string(Objective objective);

/// Seconds that are not to be exceeded; 0: any.
struct ServiceLimits {
  double first_token = 0;
  double output_token = 0;
};

struct SearchOptions {
  HardwareChoice hardware;
  double memory_bytes = 0;  ///< of a GPU
  ProjectionOptions projection;
  Objective objective = Objective::throughput;
  ServiceLimits limits;
  bool exhaustive = false;  ///< axes that refine are tried on every layout
  int threads = 1;
};

/// A layout that fits, in time.
struct TimedLayout {
  Choice choice;
  double memory_bytes = 0;  ///< of the rank that holds the most
  Interval first_token, output_token, tokens_per_second;
  double cost = 0;      ///< what the objective makes least: seconds, of throughput those of a token
  CauseSeconds causes;  ///< of the cost; they add up to it, but for the engine's share of a first token
  bool meets_limits = true;
  bool pareto = false;   ///< no layout that meets the limits is as good in all three figures and better in one
  std::string loses_by;  ///< against the best; empty for that
};

/// A layout that needs too much memory.
struct TooLarge {
  Choice choice;
  double memory_bytes = 0;
  std::string arithmetic;
};

struct SearchReport {
  std::vector<TimedLayout> ranked;  ///< the best first
  std::int64_t refused = 0;         ///< degrees that fit the model, and yet no valid plan
  std::string refused_because;      ///< the first one's problem
  std::int64_t too_large = 0;
  std::optional<TooLarge> least_too_large;

  /// Those that meet the limits.
  std::int64_t good() const;
};

/// Throws TooManyRecords.
SearchReport search(const SearchSpace& space, const SearchOptions& options);

/// The base plan as it stands, its degrees included, held to the best of the report: where it would be placed (from 0),
/// and why. Empty `too_large` where it fits the memory.
struct Placed {
  TimedLayout layout;
  std::size_t place = 0;
  std::string too_large;
};
Placed place(const Plan& plan, const SearchOptions& options, const SearchReport& report);

}  // namespace shardproof
