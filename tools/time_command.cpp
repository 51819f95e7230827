#include "tools/time_command.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "emu/report/kineto_trace.h"
#include "emu/report/timeline_trace.h"
#include "emu/timeline/anchors.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/projection.h"
#include "emu/timeline/request_times.h"
#include "tools/exit_code.h"
#include "tools/file_uses.h"
#include "tools/hardware_flags.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/time_text.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

struct TimeFlags {
  std::string plan;
  std::string json;
  std::string trace;
  std::string trace_dir;
  std::string style;
  HardwareFlags hardware;
  bool explain = false;
  bool list_presets = false;
  bool anchors = false;
};

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
  if (!flags.plan.empty() || !flags.trace.empty() || !flags.trace_dir.empty() || !flags.hardware.preset.empty() ||
      !flags.hardware.engine.empty() || !flags.hardware.format.empty() || flags.explain) {
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
  const HardwareBook book = flags.hardware.book(files);
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
  const HardwareChoice hardware = flags.hardware.choice(book, plan);
  const Projection projection = dry_run_of(file, [&] { return project(plan, hardware, flags.hardware.options(plan)); });
  std::optional<RequestTimes> requests;
  if (plan.workload.serving) {
    requests = dry_run_of(file, [&] { return time_requests(plan, hardware, projection.options); });
  }
  if (json.wanted()) json.write(to_json(projection, plan, requests ? &*requests : nullptr));
  if (!flags.trace_dir.empty()) write_kineto(flags, projection.prefill, plan, files);
  if (trace.wanted()) trace.write(chrome_trace(projection, plan));
  if (!json.is_stdout() && !trace.is_stdout()) {
    say(time_text(plan, projection, {.explain = flags.explain}));
    if (requests) say(requests_text(*requests, projection));
  }
  return kPass;
}

}  // namespace

void add_time_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TimeFlags>();
  CLI::App* command =
      app.add_subcommand("time", "How long a plan's steps take, by a virtual clock; runs no mathematics");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  flags->hardware.add_to(*command);
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
