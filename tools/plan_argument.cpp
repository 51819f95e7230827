#include "tools/plan_argument.h"

#include <fmt/format.h>

#include <limits>
#include <string_view>

#include "emu/model/fields.h"
#include "emu/plan/load.h"
#include "emu/plan/runnable.h"
#include "tools/arguments.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof {
extern const std::string_view kDefaultPlan;  // plans/tp4_ep4_pp4.json, embedded by the build
}

namespace shardproof::tools {

std::string plan_name(const std::string& path) {
  return path.empty() ? "default plan" : path;
}

std::string problems_text(const std::string& path, const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) {
    if (!text.empty()) text += "\n";
    const std::string& named = problem.file.empty() ? path : problem.file;
    // A syntax error, or a file that cannot be read, names the file as its field.
    const bool names_file = problem.field.starts_with(named);
    const std::string file = one_line(named);
    text += problem.field.empty() ? fmt::format("{}: {}", file, problem.message)
            : names_file          ? fmt::format("{}: {}", one_line(problem.field), problem.message)
                                  : fmt::format("{}: {}: {}", file, problem.field, problem.message);
  }
  return text;
}

PlanAndWeights read_plan_and_weights(const std::string& path, FileUses& files) {
  if (!path.empty()) files.reads("the plan", path);
  LoadedPlan loaded = path.empty() ? parse_plan(kDefaultPlan, "the embedded default plan", ".") : load_plan(path);
  if (!loaded.model_file.empty()) files.reads("the plan's model", loaded.model_file);
  if (!loaded.plan) throw UsageError(problems_text(plan_name(path), loaded.problems));
  return {std::move(*loaded.plan), std::move(loaded.model_directory)};
}

Plan read_plan(const std::string& path, FileUses& files) {
  return read_plan_and_weights(path, files).plan;
}

void say_what_is_left_out(const Plan& plan) {
  for (const Problem& missing : not_computed(plan)) complain(fmt::format("left out: {}", missing.message));
}

void ScaleFlags::add_to(CLI::App& command) {
  command
      .add_option("--scale", scale,
                  "auto: keep layers, heads, experts and degrees, shrink widths, vocabulary, batch and lengths; "
                  "N: divide widths by N; full: as the plan says")
      ->type_name("auto|full|N")
      ->capture_default_str();
  add_whole(command, "--batch", batch, {1, 1 << 20}, "Run this many sequences");
  add_whole(command, "--sequence", sequence, {1, 1 << 24}, "Make every sequence this long");
}

void ScaleFlags::add_layers_to(CLI::App& command) {
  add_whole(command, "--layers", layers, {1, kMaxLayers},
            "Run the first N layers of each kind, or as many more as the stages need");
}

ScaleOptions ScaleFlags::options() const {
  ScaleOptions result{.batch = batch, .sequence = sequence, .layers = layers};
  if (scale == "auto") return result;
  if (scale == "full") {
    result.mode = ScaleOptions::Mode::full;
    return result;
  }
  try {
    result.divisor = parse_whole("--scale", scale, 1, std::numeric_limits<std::int64_t>::max());
  } catch (const UsageError&) {
    throw UsageError(fmt::format("--scale: '{}' is none of auto, full, or a whole number of at least 1", scale));
  }
  result.mode = ScaleOptions::Mode::divide;
  return result;
}

std::string to_string(const ScaleOptions& options) {
  switch (options.mode) {
    case ScaleOptions::Mode::automatic:
      return "auto";
    case ScaleOptions::Mode::full:
      return "full";
    case ScaleOptions::Mode::divide:
      break;
  }
  return fmt::format("{}", options.divisor);
}

}  // namespace shardproof::tools
