#include "tools/time_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "tools/median.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

using Rows = std::vector<std::vector<std::string>>;

/// "12.3 us", "4.5 ms", "1.2 s".
std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.4g} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.4g} ms", seconds * 1e3);
  return fmt::format("{:.4g} s", seconds);
}

std::string count_text(double count) {
  return count < 1e15 ? with_thousands(std::llround(count)) : fmt::format("{:.4g}", count);
}

template <class Text>
std::vector<std::string> interval_row(std::string name, const Interval& interval, const Text& text, bool calibrated) {
  return {std::move(name), text(interval.value), text(interval.low), text(interval.high),
          calibrated ? "" : "uncalibrated"};
}

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

Interval divided(const Interval& interval, double by) {
  return {interval.value / by, interval.low / by, interval.high / by};
}

std::string routing_text(const Routing& routing) {
  if (!routing.counts.empty()) return "as counted";
  return routing.zipf == 0 ? "even" : fmt::format("zipf {:g}", routing.zipf);
}

std::string figures(const Projection& p) {
  const bool prefill = p.hardware.calibrated_prefill, decode = p.hardware.calibrated_decode;
  Rows rows{{"", "projected", "from", "to", ""}};
  if (p.prefill.sequence_seconds.size() > 1) {
    rows.push_back(interval_row("first token, median request", p.seconds_to_first_token(0.5), seconds_text, prefill));
    rows.push_back(interval_row("first token, 90 % of them", p.seconds_to_first_token(0.9), seconds_text, prefill));
  }
  rows.push_back(interval_row("first token, last request", p.seconds_to_first_token(1), seconds_text, prefill));
  rows.push_back(interval_row("time per output token", p.seconds_per_output_token(), seconds_text, decode));
  const Interval prompt = p.prompt_tokens_per_second(), output = p.output_tokens_per_second();
  rows.push_back(interval_row("prompt tokens/s", prompt, count_text, prefill));
  rows.push_back(interval_row("  per GPU", divided(prompt, p.world), count_text, prefill));
  rows.push_back(interval_row("  per node", divided(prompt, p.nodes()), count_text, prefill));
  rows.push_back(interval_row("output tokens/s", output, count_text, decode));
  rows.push_back(interval_row("  per GPU", divided(output, p.world), count_text, decode));
  rows.push_back(interval_row("  per node", divided(output, p.nodes()), count_text, decode));
  return table(rows, 1);
}

std::string communication_table(const PassTiming& pass) {
  Rows rows{{"collective", "over", "calls", "bytes", "moving", "share", "waiting"}};
  if (pass.hidden > 0) rows.front().emplace_back("hidden");
  for (const CommunicationTime& total : pass.communication) {
    rows.push_back({std::string(to_string(total.operation)), std::string(to_string(total.axis)),
                    fmt::format("{:g}", total.calls), human_bytes(total.wire_bytes), seconds_text(total.moving),
                    percent(total.moving / pass.seconds), seconds_text(total.waiting)});
    if (pass.hidden > 0) rows.back().push_back(seconds_text(total.hidden));
  }
  return rows.size() > 1 ? "\n" + table(rows, 2) : "";
}

std::string critical_table(const PassTiming& pass, std::size_t most) {
  Rows rows{{"critical path", "times", "seconds", "share"}};
  double shown = 0;
  for (std::size_t i = 0; i < pass.critical.size() && i < most; ++i) {
    const OpTime& op = pass.critical[i];
    shown += op.seconds;
    rows.push_back({std::string(to_string(op.op)), with_thousands(op.count), seconds_text(op.seconds),
                    percent(op.seconds / pass.seconds)});
  }
  const double rest = pass.seconds - pass.replay.overhead - shown;
  if (pass.critical.size() > most) rows.push_back({"the rest", "", seconds_text(rest), percent(rest / pass.seconds)});
  if (pass.replay.overhead > 0) {
    rows.push_back({"engine, once a step", "1", seconds_text(pass.replay.overhead), percent(pass.overhead)});
  }
  return rows.size() > 1 ? "\n" + table(rows, 1) : "";
}

/// The largest of equal steps of the rank that is done last, with what they take.
std::string explanation(const Projection& p, const PassTiming& pass) {
  const HardwareModel& hardware = p.hardware.model;
  const Replay& replay = pass.replay;
  const auto last = std::ranges::max_element(replay.items, {},
                                             [](const auto& items) { return items.empty() ? 0.0 : items.back().end; });
  const auto at = static_cast<int>(last - replay.items.begin());
  struct Group {
    int count = 0;
    double sum = 0;
    std::string arithmetic;
  };
  std::map<std::tuple<Op, std::string>, Group> groups;
  for (const ClockItem& item : *last) {
    const ClockStep& step = replay.program(at)[static_cast<std::size_t>(item.step)];
    if (item.pass > 0 || step.records == 0 || step.phase == CallPhase::issued) continue;
    std::string how;
    if (step.kind == ClockStep::Kind::compute) {
      const KernelWork& work = step.work;
      const double computing = computing_seconds(work, hardware), moving = moving_seconds(work, hardware);
      const double share = hardware.compute.share(work.flops) * (work.grouped ? hardware.grouped_share : 1);
      how = computing >= moving
                ? fmt::format("{:.4g} GFLOP at {:.3g} of {:.4g} TFLOP/s ({})", work.flops * 1e-9, share,
                              hardware.peak(work.rate) * 1e-12, to_string(work.rate))
                : fmt::format("{:.4g} MB at {:.3g} of {:.4g} TB/s", work.bytes * 1e-6,
                              hardware.memory.share(work.bytes), hardware.memory_bytes_per_second * 1e-12);
      how += work.launched ? fmt::format(" + {:.3g} us launch", hardware.launch_seconds * 1e6) : ", fused";
    } else {
      how = rides_along(step.op) ? "travels with the rows"
            : step.phase == CallPhase::awaited
                ? fmt::format("{} over {}: what is left of it", to_string(step.operation), to_string(step.axis))
                : fmt::format("{} over {}: {:.4g} MB in {}", to_string(step.operation), to_string(step.axis),
                              step.wire * 1e-6, seconds_text(item.end - item.begin));
    }
    Group& group = groups[{step.op, how}];
    group.count += 1;
    group.sum += item.end - item.begin;
    group.arithmetic = how;
  }
  Rows rows{{fmt::format("of rank {}", replay.first_rank[static_cast<std::size_t>(at)]), "one takes", "times", "sum"}};
  std::vector<std::pair<std::string, Group>> sorted;
  for (const auto& [key, group] : groups) {
    sorted.emplace_back(fmt::format("{}: {}", to_string(std::get<0>(key)), group.arithmetic), group);
  }
  std::ranges::stable_sort(sorted, [](const auto& a, const auto& b) { return a.second.sum > b.second.sum; });
  for (const auto& [name, group] : sorted) {
    rows.push_back(
        {name, seconds_text(group.sum / group.count), fmt::format("{}", group.count), seconds_text(group.sum)});
  }
  return "\n" + table(rows, 1);
}

std::string pass_text(const Projection& p, const PassTiming& pass, const TimeTextOptions& options) {
  const bool prefill = pass.pass == DryPass::prefill;
  const Interval step = time_interval(pass.seconds, prefill ? p.hardware.model.prefill : p.hardware.model.decode);
  std::string text =
      fmt::format("\n{}: {} tokens in {} ({} to {})\n", toned(prefill ? "prefill" : "decode step", Tone::bold),
                  count_text(pass.tokens), seconds_text(step.value), seconds_text(step.low), seconds_text(step.high));
  text += fmt::format(
      "  of all ranks' seconds: computing {}, communicating {} ({}), waiting {}, bubble {}, "
      "engine {}\n",
      percent(pass.computing), percent(pass.communicating),
      pass.hidden > 0 ? fmt::format("exposed; {} more is hidden: under way meanwhile", percent(pass.hidden))
                      : "all exposed: nothing overlaps",
      percent(pass.waiting), percent(pass.bubble), percent(pass.overhead));
  text += fmt::format("  MFU {}, memory bandwidth {} of their peaks; {} classes of ranks replayed\n", percent(pass.mfu),
                      percent(pass.bandwidth_share), pass.replay.items.size());
  text += communication_table(pass) + critical_table(pass, 8);
  if (options.explain) text += explanation(p, pass);
  return text;
}

}  // namespace

std::string time_text(const Plan& plan, const Projection& p, const TimeTextOptions& options) {
  std::string text = fmt::format("{}: {} GPUs on {} node{} of {}, {}, routing {}; hardware: {}\n",
                                 toned(one_line(plan.name), Tone::bold), p.world, p.nodes(), p.nodes() == 1 ? "" : "s",
                                 p.gpus_per_node, ops::to_string(p.options.format), routing_text(plan.workload.routing),
                                 p.hardware.name);
  for (const std::string& taken : p.hardware.taken) text += fmt::format("  open: {}\n", taken);
  if (p.options.weights != WeightFormat::as_run) {
    text += fmt::format("  weights: {}\n", p.options.weights == WeightFormat::fp8 ? "fp8" : "4 bits, a scale for 32");
  }
  if (!p.hardware.calibrated_prefill || !p.hardware.calibrated_decode) {
    text +=
        "  uncalibrated: nothing was measured on this hardware; intervals are the widest of the hardware that was\n";
  }
  return text + "\n" + figures(p) + pass_text(p, p.prefill, options) + pass_text(p, p.decode, options);
}

std::string requests_text(const RequestTimes& times, const Projection& p) {
  const bool prefill = times.hardware.calibrated_prefill, decode = times.hardware.calibrated_decode;
  Rows rows{{toned("requests over time", Tone::bold), "projected", "from", "to", ""}};
  const std::pair<const char*, double> shares[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
  for (const auto& [name, share] : shares) {
    rows.push_back(interval_row(fmt::format("first token, {}", name), times.first_token(share), seconds_text, prefill));
  }
  for (const auto& [name, share] : shares) {
    rows.push_back(
        interval_row(fmt::format("time per output token, {}", name), times.output_token(share), seconds_text, decode));
  }
  const Interval rate = times.tokens_per_second();
  rows.push_back(interval_row("output tokens/s", rate, count_text, decode));
  rows.push_back(interval_row("  per GPU", divided(rate, p.world), count_text, decode));
  rows.push_back(interval_row("  per node", divided(rate, p.nodes()), count_text, decode));
  return "\n" + table(rows, 1) +
         fmt::format("{} requests in {} steps, {}; {} shapes of steps were replayed\n",
                     with_thousands(std::ssize(times.requests)), with_thousands(times.steps),
                     times.busy < times.seconds ? fmt::format("{} and {} without a request", seconds_text(times.busy),
                                                              seconds_text(times.seconds - times.busy))
                                                : seconds_text(times.seconds),
                     with_thousands(times.shapes));
}

std::string anchors_text(const std::vector<ProjectedAnchor>& rows) {
  std::vector<std::string> groups;
  for (const ProjectedAnchor& row : rows) {
    const std::string group = row.anchor->group();
    if (std::ranges::find(groups, group) == groups.end()) groups.push_back(group);
  }
  std::string text;
  for (const std::string& group : groups) {
    Rows cells{{"case", "use", "stated", "projected", "error"}};
    std::vector<double> held_out;
    bool calibrated = false;
    for (const ProjectedAnchor& row : rows) {
      if (row.anchor->group() != group) continue;
      calibrated = row.calibrated;
      if (!row.anchor->calibrates) held_out.push_back(std::fabs(row.error()));
      cells.push_back({row.anchor->id, row.anchor->calibrates ? "calibrates" : "held out",
                       seconds_text(row.anchor->seconds), seconds_text(row.seconds),
                       fmt::format("{:+.1f} %", 100 * row.error())});
    }
    text += fmt::format("{}{}{}\n", toned(group, Tone::bold), calibrated ? "" : ": uncalibrated",
                        held_out.empty() ? std::string()
                                         : fmt::format("; held out: median error {}, worst {}",
                                                       percent(median(held_out)), percent(std::ranges::max(held_out))));
    text += table(cells, 2) + "\n";
  }
  return text;
}

std::string preset_list(const HardwareBook& book) {
  std::string text;
  for (const HardwarePreset& preset : book.presets) {
    const HardwareModel& m = preset.model;
    text += fmt::format("{}  {:g} TFLOP/s bf16, {:g} GB at {:g} TB/s, links {:g} GB/s inside a node, {:g} across\n",
                        toned(preset.name, Tone::bold), m.peak(Rate::bf16) * 1e-12, preset.memory_gb,
                        m.memory_bytes_per_second * 1e-12, m.inside.bytes_per_second * 1e-9,
                        m.across.bytes_per_second * 1e-9);
    for (const EngineModel& engine : preset.engines) {
      text += fmt::format("    engine {}: {} cases of prefill, {} of decode calibrate it\n", engine.name,
                          engine.prefill.cases, engine.decode.cases);
    }
    for (const std::string& source : preset.sources) text += fmt::format("    {}\n", source);
  }
  return text;
}

}  // namespace shardproof::tools
