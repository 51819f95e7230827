#include "tools/plan_argument.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <string_view>

#include "emu/plan/load.h"
#include "emu/plan/runnable.h"
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
    // A syntax error, or a file that cannot be read, names the file as its field.
    const bool names_file = problem.field.starts_with(path);
    text += problem.field.empty() ? fmt::format("{}: {}", path, problem.message)
            : names_file          ? fmt::format("{}: {}", problem.field, problem.message)
                                  : fmt::format("{}: {}: {}", path, problem.field, problem.message);
  }
  return text;
}

Plan read_plan(const std::string& path) {
  LoadedPlan loaded = path.empty() ? parse_plan(kDefaultPlan, "the embedded default plan", ".") : load_plan(path);
  if (!loaded.plan) throw UsageError(problems_text(plan_name(path), loaded.problems));
  return std::move(*loaded.plan);
}

void say_what_is_left_out(const Plan& plan) {
  for (const Problem& missing : not_computed(plan)) fmt::print(stderr, "shardproof: left out: {}\n", missing.message);
}

void ScaleFlags::add_to(CLI::App& command) {
  command
      .add_option("--scale", scale,
                  "auto: keep layers, heads, experts and degrees, shrink widths, vocabulary, batch and lengths; "
                  "N: divide widths by N; full: as the plan says")
      ->type_name("auto|full|N")
      ->capture_default_str();
  command.add_option("--batch", batch, "Run this many sequences")->type_name("N")->check(CLI::Range(1, 1 << 20));
  command.add_option("--sequence", sequence, "Make every sequence this long")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
}

ScaleOptions ScaleFlags::options() const {
  ScaleOptions result{.batch = batch, .sequence = sequence};
  if (scale == "auto") return result;
  if (scale == "full") {
    result.mode = ScaleOptions::Mode::full;
    return result;
  }
  const char* end = scale.data() + scale.size();
  const auto [stop, error] = std::from_chars(scale.data(), end, result.divisor);
  if (error != std::errc{} || stop != end || result.divisor < 1) {
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
