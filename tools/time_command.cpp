#include "tools/time_command.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/paper/figures.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "emu/report/kineto_trace.h"
#include "emu/report/timeline_trace.h"
#include "emu/timeline/anchors.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/projection.h"
#include "tools/exit_code.h"
#include "tools/file_uses.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/time_text.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

constexpr std::uintmax_t kMaxHardwareBytes = 1u << 20;

struct TimeFlags {
  std::string plan;
  std::string json;
  std::string trace;
  std::string trace_dir;
  std::string style;
  std::string preset;
  std::string engine;
  std::string calibrate;
  std::string format;
  bool explain = false;
  bool list_presets = false;
  bool anchors = false;
};

HardwareBook hardware_book(const TimeFlags& flags, FileUses& files) {
  if (flags.calibrate.empty()) return built_in_hardware();
  files.reads("--calibrate", flags.calibrate);
  const FileText file = read_file(flags.calibrate, kMaxHardwareBytes);
  if (!file.text) throw UsageError(problems_text(flags.calibrate, file.problems));
  LoadedHardware loaded = parse_hardware(*file.text, flags.calibrate, built_in_hardware());
  if (!loaded.book) throw UsageError(problems_text(flags.calibrate, loaded.problems));
  return std::move(*loaded.book);
}

/// The model's own format and weights, or those asked for.
ProjectionOptions options_of(const Plan& plan, const std::string& format) {
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

/// A file a rank, each whole or not at all. The folder is there, which was checked before anything was computed.
void write_kineto(const TimeFlags& flags, const PassTiming& pass, const Plan& plan, FileUses& files) {
  for (int rank = 0; rank < plan.world(); ++rank) {
    const std::filesystem::path path = std::filesystem::path(flags.trace_dir) / fmt::format("rank_{}.json", rank);
    OutputFile(files, "--trace-dir", path.string()).write(kineto_trace(pass, plan, rank));
  }
}

void require_trace_folder(const TimeFlags& flags) {
  if (flags.trace_dir.empty()) {
    if (!flags.style.empty()) throw UsageError("--style belongs to --trace-dir; --trace writes Chrome's JSON");
    return;
  }
  std::error_code error;
  if (!std::filesystem::is_directory(flags.trace_dir, error)) {
    throw UsageError(
        fmt::format("--trace-dir: {} is no folder; one that is there is needed", in_quotes(flags.trace_dir)));
  }
}

int run_anchors(const TimeFlags& flags, const HardwareBook& book, FileUses& files) {
  if (!flags.plan.empty() || !flags.trace.empty() || !flags.trace_dir.empty() || !flags.preset.empty() ||
      !flags.engine.empty() || !flags.format.empty() || flags.explain) {
    throw UsageError(
        "--anchors projects what was published; it takes no plan, and --preset, --engine, --format, --explain, --trace "
        "and --trace-dir do not go with it");
  }
  OutputFile json(files, "--json", flags.json);
  const std::vector<ProjectedAnchor> rows = project_anchors(built_in_anchors(), book);
  if (json.wanted()) json.write(to_json(rows));
  if (!json.is_stdout()) say(anchors_text(rows));
  return kPass;
}

int run_time(const TimeFlags& flags) {
  FileUses files;
  const HardwareBook book = hardware_book(flags, files);
  if (flags.list_presets) {
    if (!flags.plan.empty() || !flags.json.empty() || !flags.trace.empty()) {
      throw UsageError("--list-presets needs no plan and writes no report; leave PLAN, --json and --trace out");
    }
    say(preset_list(book));
    return kPass;
  }
  if (flags.anchors) return run_anchors(flags, book, files);
  require_trace_folder(flags);
  const Plan plan = read_plan(flags.plan, files);
  const std::string file = plan_name(flags.plan);
  OutputFile json(files, "--json", flags.json);
  OutputFile trace(files, "--trace", flags.trace);
  if (json.is_stdout() && trace.is_stdout()) {
    throw UsageError("--json and --trace cannot both go to standard output");
  }
  if (const auto problems = validate(plan); !problems.empty()) throw UsageError(problems_text(file, problems));
  say_what_is_left_out(plan);
  const HardwareChoice hardware =
      choose_hardware(book, plan.hardware, {.preset = flags.preset, .engine = flags.engine});
  if (!hardware.problems.empty()) {
    const Problem& problem = hardware.problems.front();
    throw UsageError(fmt::format("{}: {}", problem.field, problem.message));
  }
  const Projection projection =
      dry_run_of(file, [&] { return project(plan, hardware, options_of(plan, flags.format)); });
  if (json.wanted()) json.write(to_json(projection, plan));
  if (!flags.trace_dir.empty()) write_kineto(flags, projection.prefill, plan, files);
  if (trace.wanted()) trace.write(chrome_trace(projection, plan));
  if (!json.is_stdout() && !trace.is_stdout()) say(time_text(plan, projection, {.explain = flags.explain}));
  return kPass;
}

}  // namespace

void add_time_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TimeFlags>();
  CLI::App* command =
      app.add_subcommand("time", "How long a plan's steps take, by a virtual clock; runs no mathematics");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  command->add_option("--preset", flags->preset, "Figures of this card, in place of the plan's (--list-presets)")
      ->type_name("NAME");
  command->add_option("--engine", flags->engine, "Serving engine, as calibrated on the card")->type_name("NAME");
  command->add_option("--calibrate", flags->calibrate, "Presets of your own, as in emu/timeline/presets.json")
      ->type_name("FILE");
  command
      ->add_option("--format", flags->format,
                   "Of the run, or fp8 or mxfp4 for its weights; without it, what the model's config says")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp16", "fp8", "mxfp4"}))
      ->type_name("FORMAT");
  command->add_flag("--explain", flags->explain, "Show what every kernel and call of the last rank takes, and why");
  command->add_flag("--list-presets", flags->list_presets, "Print every card with its figures and sources, and exit");
  command->add_flag("--anchors", flags->anchors,
                    "Project published measurements; each as stated, projected, and the error");
  command->add_option("--json", flags->json, "Write the report as JSON; - for standard output")->type_name("FILE|-");
  command
      ->add_option("--trace", flags->trace,
                   "Write both passes as Chrome's JSON, which Perfetto opens; - for standard output")
      ->type_name("FILE|-");
  command
      ->add_option(
          "--trace-dir", flags->trace_dir,
          "Write prefill into this folder, a file a rank, as PyTorch's profiler does (for Holistic Trace Analysis)")
      ->type_name("DIR");
  command->add_option("--style", flags->style, "Of --trace-dir: kineto")
      ->check(CLI::IsMember({"kineto"}))
      ->type_name("STYLE");
  command->footer("Exit codes: 0 projected, 2 usage or an invalid plan.");
  command->callback([flags, &exit_code] { exit_code = run_time(*flags); });
}

}  // namespace shardproof::tools
