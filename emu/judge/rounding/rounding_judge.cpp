#include "emu/judge/rounding/rounding_judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace shardproof::rounding {

RoundingJudge::RoundingJudge(const Rules& rules, const std::vector<bool>& present)
    : rules_(rules),
      tensors_(rules.taps.all().size()),
      judged_(rules.taps.all().size()),
      columns_in_(judged_.size()),
      nodes_(judged_.size()) {
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    for (const TapId& input : inputs_of(rules.plan, *rules.taps.all()[tap].id)) {
      const auto from = static_cast<std::size_t>(rules.taps.find(input));
      nodes_[tap].inputs.push_back(from);
      nodes_[from].consumers.push_back(tap);
    }
  }
  keep_ = !present.empty();
  if (keep_) look_for_derivable(present);
  for (Node& node : nodes_) {
    node.awaited = node.inputs.size() + (node.state == State::own ? 1 : 0);
    node.uses = node.consumers.size() + 1;
  }
  // What is computed from nothing but weights and tokens is there from the start.
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    if (nodes_[tap].state != State::wanted || nodes_[tap].awaited > 0 || !derive(tap)) continue;
    std::vector<std::size_t> ready;
    arrived(tap, ready);
  }
}

/// Inputs come before what is computed from them.
void RoundingJudge::look_for_derivable(const std::vector<bool>& present) {
  const auto there = [&](std::size_t tap) { return nodes_[tap].state != State::unneeded; };
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    if (present[tap]) continue;
    const std::vector<std::size_t>& inputs = nodes_[tap].inputs;
    const bool own = std::ranges::all_of(inputs, [&](std::size_t at) { return nodes_[at].state == State::own; });
    const bool can = std::ranges::all_of(inputs, there) && derivable(rules_.taps.all()[tap].id->kind, own);
    nodes_[tap].state = can ? State::wanted : State::unneeded;
  }
  for (std::size_t tap = nodes_.size(); tap-- > 0;) {
    if (nodes_[tap].state == State::wanted && !std::ranges::any_of(nodes_[tap].consumers, there)) {
      nodes_[tap].state = State::unneeded;
    }
  }
}

void RoundingJudge::put(std::size_t tap, const Placement& placement, const TapValues& part) {
  tensors_.put(tap, placement, part);
  std::vector<std::int64_t>& columns = columns_in_[tap];
  columns.resize(static_cast<std::size_t>(placement.rows));
  for (std::int64_t i = 0; i < placement.row_part.count; ++i) {
    columns[static_cast<std::size_t>(placement.row(i))] += placement.col_part.count;
  }
}

std::vector<bool> RoundingJudge::tokens_in(std::size_t tap) const {
  const std::vector<std::int64_t>& columns = columns_in_[tap];
  const std::size_t tokens = rules_.positions.size(), rows = columns.size() / tokens;
  std::vector<bool> in(tokens, !columns.empty());
  const ExpectedTap& expected = rules_.taps.all()[tap];
  for (std::size_t row = 0; row < columns.size(); ++row) {
    if (columns[row] < expected.cols && expected.is_due(static_cast<std::int64_t>(row))) in[row / rows] = false;
  }
  return in;
}

std::vector<bool> RoundingJudge::judgeable_tokens(std::size_t tap) const {
  std::vector<bool> judgeable = tokens_in(tap);
  const TapKind kind = rules_.taps.all()[tap].id->kind;
  const bool attends = kind == TapKind::attention_context || kind == TapKind::attention_latent_context ||
                       tap_row(kind).parts == TapParts::over_keys;
  for (const std::size_t input : nodes_[tap].inputs) {
    const std::vector<bool> in = tokens_in(input);
    bool all_before = true;
    for (std::size_t token = 0; token < in.size(); ++token) {
      all_before = in[token] && (all_before || rules_.positions[token] == 0);
      judgeable[token] = judgeable[token] && (attends ? all_before : in[token]);
    }
  }
  return judgeable;
}

void RoundingJudge::run_ended() {
  if (keep_) return;
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    for (std::size_t row = 0; row < columns_in_[tap].size(); ++row) {
      if (columns_in_[tap][row] < rules_.taps.all()[tap].cols) tensors_.clear_row(tap, static_cast<std::int64_t>(row));
    }
  }
  for (std::size_t tap = 0; tap < nodes_.size(); ++tap) {
    if (nodes_[tap].judged) continue;
    const std::vector<bool> judgeable = judgeable_tokens(tap);
    if (std::ranges::find(judgeable, true) == judgeable.end()) continue;
    // What is missing are zeros, and what comes of them is left out.
    Judged judged = judge_tap(rules_, tensors_, *rules_.taps.all()[tap].id);
    const auto rows = static_cast<std::int64_t>(columns_in_[tap].size() / judgeable.size());
    std::erase_if(judged.wrong,
                  [&](const auto& at) { return !judgeable[static_cast<std::size_t>(at.first.first / rows)]; });
    for (const auto& [place, worst] : judged.wrong) {
      if (worst.measure > judged_[tap].worst.measure) judged_[tap].worst = worst;
    }
    judged_[tap].wrong = std::move(judged.wrong);
  }
}

void RoundingJudge::arrived(std::size_t tap, std::vector<std::size_t>& ready) {
  for (const std::size_t consumer : nodes_[tap].consumers) {
    if (--nodes_[consumer].awaited == 0) ready.push_back(consumer);
  }
}

void RoundingJudge::complete(std::size_t tap) {
  std::vector<std::size_t> ready;
  {
    const std::lock_guard lock(mutex_);
    if (--nodes_[tap].awaited == 0) ready.push_back(tap);
    arrived(tap, ready);
  }
  while (!ready.empty()) {
    const std::size_t at = ready.back();
    ready.pop_back();
    if (nodes_[at].state == State::own) {
      judge(at);
    } else if (nodes_[at].state == State::wanted && derive(at)) {
      const std::lock_guard lock(mutex_);
      arrived(at, ready);
    }
  }
}

void RoundingJudge::let_go(std::size_t tap) {
  if (keep_) return;
  const std::lock_guard lock(mutex_);
  const auto used = [&](std::size_t at) {
    if (--nodes_[at].uses == 0) tensors_.drop(at);
  };
  used(tap);
  for (const std::size_t input : nodes_[tap].inputs) used(input);
}

void RoundingJudge::judge(std::size_t tap) {
  judged_[tap] = judge_tap(rules_, tensors_, *rules_.taps.all()[tap].id);
  nodes_[tap].judged = true;
  let_go(tap);
}

bool RoundingJudge::derive(std::size_t tap) {
  std::optional<RunTensor> made = derive_tap(rules_, tensors_, *rules_.taps.all()[tap].id);
  nodes_[tap].state = made ? State::derived : State::unneeded;
  if (made) tensors_.derive(tap, std::move(*made));
  let_go(tap);
  return nodes_[tap].state == State::derived;
}

bool RoundingJudge::rests_on_derived(std::size_t tap) const {
  return std::ranges::any_of(nodes_[tap].inputs, [&](std::size_t input) { return derived(input); });
}

std::string RoundingJudge::why_not_judged(std::size_t tap) const {
  for (const std::size_t input : nodes_[tap].inputs) {
    if (nodes_[input].state == State::own || nodes_[input].state == State::derived) continue;
    return fmt::format("{} is not there, nor what it could be computed from", rules_.taps.all()[input].name);
  }
  return "what it is computed from is not complete";
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
