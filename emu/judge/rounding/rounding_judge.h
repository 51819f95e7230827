// Holds a run in a float format to the rules of its ops while it goes on.
//
// Each tap is judged as soon as it and what it is computed from are complete, by the thread that completed it, and what
// nobody needs any more is let go. What comes out does not depend on the order in which parts arrive: each judgement is
// a function of whole tensors.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/rounding/comparison.h"
#include "emu/judge/rounding/op_rules.h"
#include "emu/judge/rounding/run_tensors.h"

namespace shardproof::rounding {

class RoundingJudge final : public PartJudge {
 public:
  /// `rules` outlive the judge.
  explicit RoundingJudge(const Rules& rules);

  void put(std::size_t tap, const Placement& placement, const TapValues& part) override;
  void complete(std::size_t tap) override;
  WorstElement worst_in(std::size_t tap, const Placement& block) const override;

  /// After the run. Of a tap that was not complete, or whose inputs were not: not done.
  const Judged& judged(std::size_t tap) const { return judged_[tap]; }

 private:
  struct Node {
    std::vector<std::size_t> inputs;
    std::vector<std::size_t> consumers;
    std::size_t awaited = 0;  ///< of its inputs and itself
    std::size_t uses = 0;     ///< by judgements to come
  };

  void judge(std::size_t tap);

  const Rules& rules_;
  RunTensors tensors_;
  std::vector<Judged> judged_;
  std::mutex mutex_;  // of the nodes
  std::vector<Node> nodes_;
};

}  // namespace shardproof::rounding
