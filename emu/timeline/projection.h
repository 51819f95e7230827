// What a plan's serving would take in time: folds over the virtual clock's replay of its prefill and of its decode.
//
// Prefill: every sequence of the workload arrives at once; a sequence has its first token when the last rank has the
// logits of its microbatch; what the engine adds to a request is counted there, and in no rate. Decode: one more token
// of each sequence, again and again; the time of a token is what lies between the ends of two steps in a row, so that a
// pipeline is full. Every figure is an interval: the projected value, and how far measured ones lay from it on the
// hardware that calibrates (Residuals).
//
// Of the seconds of all ranks (span * world), each is one of: overhead of the engine, computing, communicating
// (moving), waiting (for others of a group to arrive), bubble (waiting for another stage, or done before the last
// rank).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/timeline/clock.h"
#include "emu/timeline/hardware_model.h"

namespace shardproof {

struct Interval {
  double value = 0;
  double low = 0;
  double high = 0;
  bool operator==(const Interval&) const = default;
};

/// value * (1 + low) .. value * (1 + high).
Interval time_interval(double seconds, const Residuals& residuals);
/// amount / time: the slowest time gives the lowest rate.
Interval rate_interval(double amount, const Interval& time);

struct CommunicationTime {
  Axis axis{};
  Operation operation{};
  double calls = 0;  ///< of a rank, mean; so the next ones
  double wire_bytes = 0;
  double moving = 0;  ///< seconds for which its ranks do nothing else: exposed
  double hidden = 0;  ///< seconds for which they do
  double waiting = 0;
};

struct OpTime {
  Op op{};
  double seconds = 0;
  std::int64_t count = 0;
};

struct PassTiming {
  DryPass pass{};
  double seconds = 0;  ///< from its begin to the end of the last rank
  double period = 0;   ///< between the ends of two such passes in a row
  double tokens = 0;   ///< that it takes in, of all sequences
  double flops = 0;    ///< of all ranks
  double bytes = 0;
  double overhead = 0, computing = 0, communicating = 0, waiting = 0, bubble = 0;  ///< shares; they add up to 1
  double hidden = 0;           ///< of communication that is under way meanwhile, beside the shares
  double mfu = 0;              ///< flops / (seconds * world * peak of the format that the weights are multiplied in)
  double bandwidth_share = 0;  ///< bytes / (seconds * world * memory bandwidth)
  std::vector<double> sequence_seconds;  ///< by sequence: when its logits are there
  std::vector<CommunicationTime> communication;
  std::vector<OpTime> critical;  ///< the ops of the longest chain of what waits for what, most seconds first
  Replay replay;
};

struct ProjectionOptions {
  ops::Format format = ops::Format::bf16;
  WeightFormat weights = WeightFormat::as_run;
};

struct Projection {
  HardwareChoice hardware;
  int world = 1;
  int gpus_per_node = 8;
  ProjectionOptions options;
  PassTiming prefill, decode;

  Interval prefill_seconds() const;
  Interval seconds_to_first_token(double share_of_requests = 1) const;  ///< 0.5: of the median request; 1: of the last
  Interval seconds_per_output_token() const;
  Interval prompt_tokens_per_second() const;
  Interval output_tokens_per_second() const;
  int nodes() const { return (world + gpus_per_node - 1) / gpus_per_node; }
};

/// The plan must be valid (validate.h), the choice without problems. Throws TooManyRecords.
Projection project(const Plan& plan, const HardwareChoice& hardware, const ProjectionOptions& options);

/// The same on each of the hardware, from one dry run; no replay is kept.
std::vector<Projection> project(const Plan& plan, std::span<const HardwareChoice> hardware,
                                const ProjectionOptions& options);

/// A pass that was run dry, projected onto hardware: for who asks for several.
PassTiming time_pass(const Plan& plan, const DryTraces& traces, DryPass pass, const HardwareModel& hardware,
                     const ProjectionOptions& options);

}  // namespace shardproof
