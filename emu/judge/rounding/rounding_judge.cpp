#include "emu/judge/rounding/rounding_judge.h"

#include <utility>

namespace shardproof::rounding {

RoundingJudge::RoundingJudge(const Rules& rules)
    : rules_(rules), tensors_(rules.taps.all().size()), judged_(rules.taps.all().size()), nodes_(judged_.size()) {
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    for (const TapId& input : inputs_of(rules.plan, *rules.taps.all()[tap].id)) {
      const auto from = static_cast<std::size_t>(rules.taps.find(input));
      nodes_[tap].inputs.push_back(from);
      nodes_[from].consumers.push_back(tap);
    }
  }
  for (Node& node : nodes_) {
    node.awaited = node.inputs.size() + 1;
    node.uses = node.consumers.size() + 1;
  }
}

void RoundingJudge::put(std::size_t tap, const Placement& placement, const TapValues& part) {
  tensors_.put(tap, placement, part);
}

void RoundingJudge::complete(std::size_t tap) {
  std::vector<std::size_t> ready;
  {
    const std::lock_guard lock(mutex_);
    const auto arrived = [&](std::size_t at) {
      if (--nodes_[at].awaited == 0) ready.push_back(at);
    };
    arrived(tap);
    for (const std::size_t consumer : nodes_[tap].consumers) arrived(consumer);
  }
  for (const std::size_t at : ready) judge(at);
}

void RoundingJudge::judge(std::size_t tap) {
  judged_[tap] = judge_tap(rules_, tensors_, *rules_.taps.all()[tap].id);
  const std::lock_guard lock(mutex_);
  const auto used = [&](std::size_t at) {
    if (--nodes_[at].uses == 0) tensors_.drop(at);
  };
  used(tap);
  for (const std::size_t input : nodes_[tap].inputs) used(input);
}

WorstElement RoundingJudge::worst_in(std::size_t tap, const Placement& block) const {
  WorstElement worst;
  const auto& wrong = judged_[tap].wrong;
  if (wrong.empty()) return worst;
  for (std::int64_t i = 0; i < block.row_part.count; ++i) {
    const std::int64_t row = block.row(i);
    for (auto at = wrong.lower_bound({row, block.col_part.begin}); at != wrong.end(); ++at) {
      if (at->first.first != row || at->first.second >= block.col_part.end()) break;
      if (at->second.measure > worst.measure) worst = at->second;
    }
  }
  return worst;
}

}  // namespace shardproof::rounding
