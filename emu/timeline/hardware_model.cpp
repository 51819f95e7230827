#include "emu/timeline/hardware_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "emu/input/json_value.h"

namespace shardproof {
namespace {

/// The widest of what was measured, or, where nothing was, a factor of two either way.
template <class Select>
Residuals widest(const std::vector<HardwarePreset>& presets, const Select& select) {
  Residuals all{.low = -0.5, .high = 1.0};
  bool first = true;
  const auto take = [&](const Residuals& one) {
    if (!one.calibrated()) return;
    all.low = first ? one.low : std::min(all.low, one.low);
    all.high = first ? one.high : std::max(all.high, one.high);
    first = false;
  };
  for (const HardwarePreset& preset : presets) {
    take(select(preset.model));
    for (const EngineModel& engine : preset.engines) take(select(engine));
  }
  return all;
}

/// The preset that what is open is filled from.
const HardwarePreset& nearest(const HardwareBook& book, const std::optional<Hardware>& stated, std::string& why) {
  const auto closest = [&](double wanted, auto figure) {
    return &*std::ranges::min_element(
        book.presets, {}, [&](const HardwarePreset& preset) { return std::fabs(std::log(figure(preset) / wanted)); });
  };
  if (stated && stated->tflops > 0) {
    const HardwarePreset* found =
        closest(stated->tflops * 1e12, [](const HardwarePreset& p) { return p.model.peak(Rate::bf16); });
    why = fmt::format("of the presets its peak, {:g} TFLOP/s, is nearest to {:g}",
                      found->model.peak(Rate::bf16) * 1e-12, stated->tflops);
    return *found;
  }
  if (stated && stated->memory_gb > 0) {
    const HardwarePreset* found = closest(stated->memory_gb, [](const HardwarePreset& p) { return p.memory_gb; });
    why = fmt::format("of the presets its memory, {:g} GB, is nearest to {:g}", found->memory_gb, stated->memory_gb);
    return *found;
  }
  const HardwarePreset* usual = book.find("h100");
  why = "the plan states nothing of its GPUs";
  return usual != nullptr ? *usual : book.presets.front();
}

/// Puts the plan's own figures in place of the preset's, and names what it leaves open.
class Overlay {
 public:
  Overlay(HardwareChoice& choice, const Hardware& stated) : choice_(choice), stated_(stated) {}

  void apply() {
    HardwareModel& model = choice_.model;
    if (stated_.tflops > 0) model.flops_per_second.fill(stated_.tflops * 1e12);
    if (stated_.mfu > 0) model.compute = Efficiency::flat(stated_.mfu);
    if (stated_.memory_bandwidth_tbps > 0) model.memory_bytes_per_second = stated_.memory_bandwidth_tbps * 1e12;
    if (stated_.bandwidth_utilization > 0) model.memory = Efficiency::flat(stated_.bandwidth_utilization);
    for (Link* link : {&model.inside, &model.across}) {
      if (stated_.link_gbps > 0) link->bytes_per_second = stated_.link_gbps * 1e9;
      if (stated_.link_latency_us > 0) {
        link->base_seconds = stated_.link_latency_us * 1e-6;
        link->step_seconds = 0;
        link->direct_base_seconds = 0;
      }
    }
    open(stated_.tflops == 0, "peak");
    open(stated_.mfu == 0, "share of the peak");
    open(stated_.memory_bandwidth_tbps == 0, "memory bandwidth");
    open(stated_.bandwidth_utilization == 0, "share of the bandwidth");
    open(stated_.link_gbps == 0, "link bandwidth");
    open(stated_.link_latency_us == 0, "link latency");
    open(true, "launch and engine overhead");
  }

  bool states_anything() const {
    return stated_.tflops > 0 || stated_.mfu > 0 || stated_.memory_bandwidth_tbps > 0 ||
           stated_.bandwidth_utilization > 0 || stated_.link_gbps > 0 || stated_.link_latency_us > 0;
  }

 private:
  void open(bool is, const char* what) {
    if (is) choice_.open.emplace_back(what);
  }

  HardwareChoice& choice_;
  const Hardware& stated_;
};

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

void apply_engine(const EngineModel& engine, HardwareModel& model) {
  model.launch_seconds = engine.launch_seconds;
  model.overhead_seconds = engine.overhead_seconds;
  model.request_overhead_seconds = engine.request_overhead_seconds;
  model.compute = model.compute.scaled(engine.compute_scale);
  model.memory = model.memory.scaled(engine.memory_scale);
  model.prefill = engine.prefill;
  model.decode = engine.decode;
}

}  // namespace

std::string_view to_string(Rate rate) {
  constexpr std::string_view kNames[] = {"fp64", "fp32", "bf16", "fp8", "fp4"};
  return kNames[static_cast<std::size_t>(rate)];
}

double HardwareModel::peak(Rate rate) const {
  for (auto at = static_cast<int>(rate); at >= 0; --at) {
    if (flops_per_second[static_cast<std::size_t>(at)] > 0) return flops_per_second[static_cast<std::size_t>(at)];
  }
  return 0;
}

const HardwarePreset* HardwareBook::find(std::string_view name) const {
  const auto found = std::ranges::find(presets, name, &HardwarePreset::name);
  return found == presets.end() ? nullptr : &*found;
}

std::string HardwareBook::names() const {
  std::vector<std::string> all;
  for (const HardwarePreset& preset : presets) all.push_back(preset.name);
  return joined(all);
}

Residuals HardwareBook::widest_prefill() const {
  return widest(presets, [](const auto& model) { return model.prefill; });
}

Residuals HardwareBook::widest_decode() const {
  return widest(presets, [](const auto& model) { return model.decode; });
}

HardwareChoice choose_hardware(const HardwareBook& book, const std::optional<Hardware>& stated,
                               const HardwareRequest& request) {
  HardwareChoice choice;
  const std::string& wanted = !request.preset.empty() ? request.preset : stated ? stated->preset : request.preset;
  std::string why;
  const HardwarePreset* preset = !wanted.empty()             ? book.find(wanted)
                                 : request.fill_from.empty() ? &nearest(book, stated, why)
                                                             : book.find(request.fill_from);
  if (preset == nullptr) {
    choice.problems.push_back({request.preset.empty() ? "hardware.preset" : "--preset",
                               fmt::format("{} is not known; one of {} is needed", in_quotes(wanted), book.names())});
    return choice;
  }
  choice.model = preset->model;
  choice.name = preset->name;
  if (!request.engine.empty()) {
    const auto engine = std::ranges::find(preset->engines, request.engine, &EngineModel::name);
    if (engine == preset->engines.end()) {
      std::vector<std::string> names;
      for (const EngineModel& known : preset->engines) names.push_back(known.name);
      choice.problems.push_back(
          {"--engine", fmt::format("{} is not calibrated on {}; {}", in_quotes(request.engine), preset->name,
                                   names.empty() ? "no engine is" : "one of " + joined(names) + " is needed")});
      return choice;
    }
    apply_engine(*engine, choice.model);
    choice.name += " with " + request.engine;
  }
  bool own_figures = false;
  if (stated) {
    Overlay overlay(choice, *stated);
    // A preset that is asked for on the command line comes in place of what the plan states.
    own_figures = request.preset.empty() && overlay.states_anything();
    if (own_figures) overlay.apply();
  }
  if (wanted.empty()) {
    choice.filled_from = preset->name;
    if (!own_figures) choice.open = {"everything of the GPUs and their links"};
    if (own_figures) choice.name = "the plan's own figures";
    choice.taken.push_back(fmt::format("{}: as {} has it{}", joined(choice.open), preset->name,
                                       why.empty() ? "" : fmt::format(" ({})", why)));
  } else {
    choice.open.clear();
    if (own_figures) choice.name += ", with the plan's own figures";
  }
  choice.calibrated_prefill = !own_figures && choice.model.prefill.calibrated();
  choice.calibrated_decode = !own_figures && choice.model.decode.calibrated();
  if (!choice.calibrated_prefill) choice.model.prefill = book.widest_prefill();
  if (!choice.calibrated_decode) choice.model.decode = book.widest_decode();
  return choice;
}

}  // namespace shardproof
