#include "emu/paper/timed_plan.h"

#include <fmt/format.h>

#include "emu/paper/figures.h"

namespace shardproof {
namespace {

std::string shares_text(const PassTiming& pass) {
  const auto percent = [](double share) { return fmt::format("{:.1f} %", 100 * share); };
  return fmt::format("computing {}, communicating {}, waiting {}, bubble {}", percent(pass.computing),
                     percent(pass.communicating), percent(pass.waiting), percent(pass.bubble));
}

TimedOn figures_of(const Projection& p) {
  return {.filled_from = p.hardware.filled_from,
          .first_token = p.seconds_to_first_token(),
          .output_token = p.seconds_per_output_token(),
          .prompt_rate = p.prompt_tokens_per_second(),
          .output_rate = p.output_tokens_per_second(),
          .prefill_mfu = p.prefill.mfu,
          .decode_mfu = p.decode.mfu,
          .prefill_seconds = p.prefill.seconds,
          .decode_seconds = p.decode.period,
          .prefill_shares = shares_text(p.prefill),
          .decode_shares = shares_text(p.decode)};
}

}  // namespace

TimedPlan timed_plan(const Plan& plan) {
  TimedPlan timed;
  const HardwareBook& book = built_in_hardware();
  std::vector<HardwareChoice> choices{choose_hardware(book, plan.hardware, {})};
  timed.hardware = choices.front();
  if (!timed.hardware.open.empty()) {
    for (const HardwarePreset& preset : book.presets) {
      if (preset.name == timed.hardware.filled_from) continue;
      choices.push_back(choose_hardware(book, plan.hardware, {.fill_from = preset.name}));
    }
  }
  try {
    for (Projection& p : project(plan, choices, {format_of(plan.model), weight_format_of(plan.model)})) {
      timed.on.push_back(figures_of(p));
    }
  } catch (const TooManyRecords& error) {
    timed.on.clear();
    timed.unknown = error.what();
  }
  return timed;
}

const TimedPlan& LazyTimedPlan::get() const {
  if (timed_ == nullptr) timed_ = std::make_unique<const TimedPlan>(timed_plan(plan_));
  return *timed_;
}

}  // namespace shardproof
