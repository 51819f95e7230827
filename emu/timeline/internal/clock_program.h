// What the clock plays: the kernels and calls of a list of records.
#pragma once

#include <utility>
#include <vector>

#include "emu/timeline/clock.h"

namespace shardproof::timeline {

/// A message of a ring over cp is under way while its ranks compute: sent and gone on, awaited after.
bool under_way(const ClockStep& call);

class Programmer {
 public:
  /// Between passes in a row, a token goes from the last stage to the first. The options outlive this.
  Programmer(const ClockOptions& options, bool tokens_return) : options_(options), tokens_return_(tokens_return) {}

  std::vector<ClockStep> program(const RankTrace& trace);
  /// Of the program made last.
  std::vector<ExpertRows> expert_rows() { return std::move(experts_); }

 private:
  std::vector<ClockStep> steps_of(const std::vector<OpRecord>& records, const RecordRun& run);
  void token(ClockStep::Kind kind, const OpRecord& record, std::int32_t at);
  void compute(const OpRecord& record, std::int32_t at);
  void add_to_kernel(const OpRecord& record);
  void call(const OpRecord& record, std::int32_t at);

  const ClockOptions& options_;
  bool tokens_return_;
  std::vector<ClockStep> steps_;
  std::vector<ExpertRows> experts_;
  std::vector<ClockStep> awaited_;  // what a ring's next computation is done beside
};

}  // namespace shardproof::timeline
