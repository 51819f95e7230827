// Quantities that the virtual clock answers: rates, latencies, utilisation, and what expert parallelism gains.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "emu/paper/figures.h"
#include "emu/paper/internal/quantity_tables.h"
#include "emu/plan/validate.h"
#include "emu/run/routing.h"

namespace shardproof::quantity_table {
namespace {

using Select = std::function<Interval(const TimedOn&)>;

std::string range_text(double low, double high, Dimension dimension) {
  return fmt::format("{} to {}", readable(low, dimension), readable(high, dimension));
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string hardware_text(const HardwareChoice& hardware) {
  if (hardware.open.empty()) return hardware.name;
  return fmt::format("{}; open: {}, as {} has it", hardware.name, joined(hardware.open), hardware.filled_from);
}

/// The value on the chosen hardware, and an interval over every preset that may fill what is open.
QuantityValue over_hardware(const QuantityContext& context, Dimension dimension, bool prefill, const Select& select,
                            const std::function<std::string(const TimedOn&)>& text) {
  const TimedPlan& timed = context.time.get();
  if (!timed.unknown.empty()) return unknown(timed.unknown);
  QuantityValue value = number(select(timed.on.front()).value, "");
  value.interval = true;
  value.low = select(timed.on.front()).low;
  value.high = select(timed.on.front()).high;
  const Interval own = select(timed.on.front());
  for (const TimedOn& on : timed.on) {
    const Interval one = select(on);
    value.low = std::min(value.low, one.low);
    value.high = std::max(value.high, one.high);
    value.by_hardware.emplace_back(on.filled_from, one.value);
  }
  const bool calibrated = prefill ? timed.hardware.calibrated_prefill : timed.hardware.calibrated_decode;
  value.arithmetic = fmt::format("{}, {} ({}) on {}", text(timed.on.front()), range_text(own.low, own.high, dimension),
                                 calibrated ? "calibrated" : "uncalibrated", hardware_text(timed.hardware));
  if (timed.on.size() > 1) {
    value.arithmetic +=
        fmt::format("; {} with what is open as any preset has it", range_text(value.low, value.high, dimension));
  }
  return value;
}

void add_latencies(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("seconds_to_first_token", "s", Dimension::seconds,
                        "virtual clock: prefill of the whole workload, until the last request has its logits",
                        [](const QuantityContext& context) {
                          return over_hardware(
                              context, Dimension::seconds, true, [](const TimedOn& on) { return on.first_token; },
                              [&](const TimedOn& on) {
                                return fmt::format(
                                    "prefill of {} tokens takes {}, what the engine adds to a request included ({})",
                                    context.plan.workload.tokens(), duration(on.first_token.value), on.prefill_shares);
                              });
                        }));
  table.push_back(entry("seconds_per_output_token", "s", Dimension::seconds,
                        "virtual clock: between two decode steps in a row, of one more token of every sequence each",
                        [](const QuantityContext& context) {
                          return over_hardware(
                              context, Dimension::seconds, false, [](const TimedOn& on) { return on.output_token; },
                              [&](const TimedOn& on) {
                                return fmt::format("a decode step of {} sequences takes {} ({})",
                                                   context.plan.workload.batch(), duration(on.output_token.value),
                                                   on.decode_shares);
                              });
                        }));
}

Interval per_gpu(const Interval& rate, double gpus) {
  return {rate.value / gpus, rate.low / gpus, rate.high / gpus};
}

/// Tokens of a second, of prefill or decode, by so many GPUs.
QuantityValue rate(const QuantityContext& context, bool prefill, double gpus) {
  return over_hardware(
      context, Dimension::rate, prefill,
      [&](const TimedOn& on) { return per_gpu(prefill ? on.prompt_rate : on.output_rate, gpus); },
      [&](const TimedOn& on) {
        return fmt::format(
            "{} {} in {}{} = {}", prefill ? context.plan.workload.tokens() : context.plan.workload.batch(),
            prefill ? "prompt tokens" : "output tokens", duration(prefill ? on.prefill_seconds : on.decode_seconds),
            gpus > 1 ? fmt::format(" on {:g} GPUs", gpus) : "",
            readable((prefill ? on.prompt_rate : on.output_rate).value / gpus, Dimension::rate));
      });
}

/// Who says tokens a second need not say which: prompts are read far faster than answers are written.
QuantityValue rate_of_prompts(const QuantityContext& context, double gpus) {
  QuantityValue value = rate(context, true, gpus);
  if (!value.unknown.empty()) return value;
  const double output = context.time.get().on.front().output_rate.value / gpus;
  value.condition = fmt::format("prompt tokens are meant; of output tokens, {}", readable(output, Dimension::rate));
  value.condition_value = output;
  return value;
}

void add_rates(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("tokens_per_second", "tokens/s", Dimension::rate,
                        "virtual clock: prompt tokens of the workload / seconds of its prefill",
                        [](const QuantityContext& context) { return rate_of_prompts(context, 1); }));
  table.push_back(entry("tokens_per_second_per_gpu", "tokens/s", Dimension::rate, "tokens_per_second / world",
                        [](const QuantityContext& context) { return rate_of_prompts(context, context.plan.world()); }));
  table.push_back(entry("output_tokens_per_second", "tokens/s", Dimension::rate,
                        "virtual clock: sequences / seconds_per_output_token",
                        [](const QuantityContext& context) { return rate(context, false, 1); }));
  table.push_back(entry("output_tokens_per_second_per_gpu", "tokens/s", Dimension::rate,
                        "output_tokens_per_second / world",
                        [](const QuantityContext& context) { return rate(context, false, context.plan.world()); }));
}

void add_utilization(std::vector<QuantityDefinition>& table) {
  const auto utilization = [](const QuantityContext& context, bool prefill) {
    QuantityValue value = over_hardware(
        context, Dimension::share, prefill,
        [&](const TimedOn& on) {
          // The slower it is, the smaller its share.
          const Interval& time = prefill ? on.first_token : on.output_token;
          const double mfu = prefill ? on.prefill_mfu : on.decode_mfu;
          return Interval{mfu, mfu * time.value / time.high, std::min(1.0, mfu * time.value / time.low)};
        },
        [&](const TimedOn& on) {
          return fmt::format("{} of the peak in {}",
                             readable(prefill ? on.prefill_mfu : on.decode_mfu, Dimension::share),
                             prefill ? "prefill" : "decode");
        });
    return value;
  };
  table.push_back(entry("compute_utilization", "share", Dimension::share,
                        "virtual clock: flops of a prefill / (its seconds * world * peak)",
                        [utilization](const QuantityContext& context) {
                          QuantityValue value = utilization(context, true);
                          if (!value.unknown.empty()) return value;
                          value.arithmetic += fmt::format(
                              "; in decode {}", readable(context.time.get().on.front().decode_mfu, Dimension::share));
                          return value;
                        }));
  table.push_back(entry("decode_compute_utilization", "share", Dimension::share,
                        "virtual clock: flops of a decode step / (its seconds * world * peak)",
                        [utilization](const QuantityContext& context) { return utilization(context, false); }));
}

/// The plan on the same GPUs without expert parallelism: each expert sliced over as many more ranks, or replicated.
struct Alternative {
  std::string name;
  Plan plan;
};

std::vector<Alternative> without_expert_parallelism(const Plan& plan) {
  std::vector<Alternative> all;
  for (const bool sliced : {true, false}) {
    Alternative one{.name = "", .plan = plan};
    Parallel& p = one.plan.parallel;
    (sliced ? p.etp : p.edp) *= p.ep;
    p.ep = 1;
    one.name =
        sliced ? fmt::format("experts sliced over etp {}", p.etp) : fmt::format("experts replicated, edp {}", p.edp);
    if (validate(one.plan).empty()) all.push_back(std::move(one));
  }
  return all;
}

/// How many times the weights and caches fill the memory; 0 where the plan states none.
double memory_share(const Plan& plan) {
  const auto share = Quantities(plan).evaluate("memory_share");
  return share && share->unknown.empty() ? share->max : 0;
}

QuantityValue throughput_gain(const QuantityContext& context) {
  const Plan& plan = context.plan;
  if (plan.parallel.ep == 1) return number(1, "ep is 1: there is no expert parallelism to gain from");
  const TimedPlan& timed = context.time.get();
  if (!timed.unknown.empty()) return unknown(timed.unknown);
  QuantityValue value;
  value.interval = true;
  std::string text;
  std::optional<double> best;
  for (const Alternative& other : without_expert_parallelism(plan)) {
    const double memory = memory_share(other.plan);
    if (memory > 1) {
      text += fmt::format("{}{}: does not fit ({} of the memory)", text.empty() ? "" : "; ", other.name,
                          readable(memory, Dimension::share));
      continue;
    }
    const TimedPlan slower = timed_plan(other.plan);
    if (!slower.unknown.empty()) return unknown(slower.unknown);
    double low = 0, high = 0;
    for (std::size_t i = 0; i < timed.on.size(); ++i) {
      const double gain = slower.on[i].prefill_seconds / timed.on[i].prefill_seconds;
      low = i == 0 ? gain : std::min(low, gain);
      high = i == 0 ? gain : std::max(high, gain);
    }
    const double gain = slower.on.front().prefill_seconds / timed.on.front().prefill_seconds;
    text +=
        fmt::format("{}{}: prefill {:.4g} times as fast with ep {} ({:.4g} to {:.4g} over the presets), decode {:.4g}",
                    text.empty() ? "" : "; ", other.name, gain, plan.parallel.ep, low, high,
                    slower.on.front().decode_seconds / timed.on.front().decode_seconds);
    value.low = best ? std::min(value.low, low) : low;
    value.high = best ? std::max(value.high, high) : high;
    best = std::max(best.value_or(gain), gain);
  }
  if (!best) return unknown(text.empty() ? "no plan without expert parallelism is valid on these GPUs" : text);
  value.value = *best;
  value.arithmetic = fmt::format("{}; on {}", text, hardware_text(timed.hardware));
  return value;
}

/// Of the layer with the fewest, experts that any token of the workload goes to.
QuantityValue active_experts(const QuantityContext& context) {
  const ModelConfig& model = context.plan.model;
  if (model.dense()) return number(1, "the model has no experts");
  const StatedRouting routing = StatedRouting::of(context.plan);
  const TokenRows all{.runs = {{0, context.plan.workload.tokens()}}};
  double least = 1;
  std::int64_t of = 0, at = 0, served = 0;
  std::vector<bool> seen(model.layers.kinds().size(), false);
  for (std::int64_t layer = 0; layer < model.layers.size(); ++layer) {
    const FeedForwardSpec& spec = model.layers[layer].feed_forward;
    const auto kind = static_cast<std::size_t>(model.layers.kind_of(layer));
    if (spec.dense() || (routing.same_in_every_layer() && seen[kind])) continue;
    const bool first = of == 0;
    seen[kind] = true;
    const std::vector<std::int64_t> slots = routing.slots(static_cast<int>(layer), all, spec.num_experts);
    const auto active = static_cast<std::int64_t>(std::ranges::count_if(slots, [](auto n) { return n > 0; }));
    const double share = static_cast<double>(active) / static_cast<double>(spec.num_experts);
    if (!first && share >= least) continue;
    least = share;
    of = spec.num_experts;
    at = layer;
    served = active;
  }
  QuantityValue value = number(least, fmt::format("layer {}: {} of {} experts serve a token of the workload's {}", at,
                                                  served, of, context.plan.workload.tokens()));
  value.condition =
      "tokens go where workload.routing says (the router's own choices: tokens_per_expert of `shardproof verify`); "
      "where "
      "it leaves an expert out";
  return value;
}

}  // namespace

void add_time_quantities(std::vector<QuantityDefinition>& table) {
  add_rates(table);
  add_latencies(table);
  add_utilization(table);
  table.push_back(entry("throughput_gain", "", Dimension::count,
                        "virtual clock: seconds of a prefill without expert parallelism on the same GPUs (experts "
                        "sliced, etp = ep; or replicated, edp = ep, where that fits) / with it",
                        throughput_gain));
  table.push_back(entry("measured_active_experts", "share", Dimension::share,
                        "experts that receive a token of the workload at its routing / experts, in the layer with the "
                        "fewest",
                        active_experts));
}

}  // namespace shardproof::quantity_table
