// Holds a run in a float format to the rules of its ops while it goes on.
//
// Each tap is judged as soon as it and what it is computed from are complete, by the thread that completed it, and what
// nobody needs any more is let go. What comes out does not depend on the order in which parts arrive: each judgement is
// a function of whole tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/rounding/comparison.h"
#include "emu/judge/rounding/op_rules.h"
#include "emu/judge/rounding/run_tensors.h"

namespace shardproof::rounding {

class RoundingJudge final : public PartJudge {
 public:
  /// `rules` outlive the judge. `present`: of each tap, whether the run hands it in; empty: all. Of those that it does
  /// not, what the judgement of others needs is computed where it can be (derive_tap). Where it says so, all that was
  /// handed in or computed is kept.
  explicit RoundingJudge(const Rules& rules, const std::vector<bool>& present = {});

  void put(std::size_t tap, const Placement& placement, const TapValues& part) override;
  void complete(std::size_t tap) override;
  /// Of a tap that is not complete, the tokens are judged that came, as did what they are computed from.
  void run_ended() override;
  WorstElement worst_in(std::size_t tap, const Placement& block) const override;

  /// After the run. Of a tap that was not complete, or whose inputs were not: not done.
  const Judged& judged(std::size_t tap) const { return judged_[tap]; }
  /// Of a tap that was not judged: why.
  std::string why_not_judged(std::size_t tap) const;
  bool derived(std::size_t tap) const { return nodes_[tap].state == State::derived; }
  /// Some of what it is computed from was computed itself.
  bool rests_on_derived(std::size_t tap) const;
  const RunTensors& tensors() const { return tensors_; }

 private:
  enum class State {
    own,       ///< the run hands it in
    wanted,    ///< it does not, and a judgement needs it
    derived,   ///< computed in its place
    unneeded,  ///< no judgement needs it, or it cannot be computed
  };
  struct Node {
    State state = State::own;
    std::vector<std::size_t> inputs;
    std::vector<std::size_t> consumers;
    std::size_t awaited = 0;  ///< of its inputs and itself
    std::size_t uses = 0;     ///< by judgements to come
    bool judged = false;
  };

  void look_for_derivable(const std::vector<bool>& present);
  /// The tap is there: so are, perhaps, the last inputs of others.
  void arrived(std::size_t tap, std::vector<std::size_t>& ready);
  void judge(std::size_t tap);
  bool derive(std::size_t tap);
  void let_go(std::size_t tap);
  std::vector<bool> tokens_in(std::size_t tap) const;
  /// The tokens of the tap, and what each of them is computed from, are there.
  std::vector<bool> judgeable_tokens(std::size_t tap) const;

  const Rules& rules_;
  RunTensors tensors_;
  std::vector<Judged> judged_;
  std::vector<std::vector<std::int64_t>> columns_in_;  // of each tap: how many elements of each row came
  bool keep_ = false;
  std::mutex mutex_;  // of the nodes
  std::vector<Node> nodes_;
};

}  // namespace shardproof::rounding
