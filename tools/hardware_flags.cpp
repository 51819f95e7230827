#include "tools/hardware_flags.h"

#include <fmt/format.h>

#include "emu/input/json_value.h"
#include "emu/paper/figures.h"
#include "tools/plan_argument.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

constexpr std::uintmax_t kMaxHardwareBytes = 1u << 20;

}  // namespace

void HardwareFlags::add_to(CLI::App& command) {
  command.add_option("--preset", preset, "Figures of this card, in place of the plan's (time --list-presets)")
      ->type_name("NAME");
  command.add_option("--engine", engine, "Serving engine, as calibrated on the card")->type_name("NAME");
  command.add_option("--calibrate", calibrate, "Presets of your own, as in emu/timeline/presets.json")
      ->type_name("FILE");
  command
      .add_option("--format", format,
                  "Of the run, or fp8 or mxfp4 for its weights; without it, what the model's config says")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp16", "fp8", "mxfp4"}))
      ->type_name("FORMAT");
}

HardwareBook HardwareFlags::book(FileUses& files) const {
  if (calibrate.empty()) return built_in_hardware();
  files.reads("--calibrate", calibrate);
  const FileText file = read_file(calibrate, kMaxHardwareBytes);
  if (!file.text) throw UsageError(problems_text(calibrate, file.problems));
  LoadedHardware loaded = parse_hardware(*file.text, calibrate, built_in_hardware());
  if (!loaded.book) throw UsageError(problems_text(calibrate, loaded.problems));
  return std::move(*loaded.book);
}

HardwareChoice HardwareFlags::choice(const HardwareBook& book, const Plan& plan) const {
  HardwareChoice chosen = choose_hardware(book, plan.hardware, {.preset = preset, .engine = engine});
  if (!chosen.problems.empty()) {
    const Problem& problem = chosen.problems.front();
    throw UsageError(fmt::format("{}: {}", problem.field, problem.message));
  }
  return chosen;
}

ProjectionOptions HardwareFlags::options(const Plan& plan) const {
  ProjectionOptions options{.format = format_of(plan.model), .weights = weight_format_of(plan.model)};
  if (format == "fp8") {
    options.weights = WeightFormat::fp8;
  } else if (format == "mxfp4") {
    options.weights = WeightFormat::four_bit;
  } else if (!format.empty()) {
    options.format = *ops::parse_format(format);
    options.weights = WeightFormat::as_run;
  }
  return options;
}

}  // namespace shardproof::tools
