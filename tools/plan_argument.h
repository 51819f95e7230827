// The PLAN argument and the flags that scale it, shared by the subcommands.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "emu/plan/plan.h"
#include "emu/plan/scale.h"
#include "emu/run/dry_run.h"
#include "tools/file_uses.h"
#include "tools/usage_error.h"

namespace shardproof::tools {

/// Reads the plan, or the embedded default when `path` is empty; `files` gets what was read. Throws UsageError listing
/// every problem, each with the file's name.
Plan read_plan(const std::string& path, FileUses& files);
/// The same, with the directory of the checkpoint that the plan names as its model, if it does.
struct PlanAndWeights {
  Plan plan;
  std::string directory;
};
PlanAndWeights read_plan_and_weights(const std::string& path, FileUses& files);

/// What a plan is called in messages: its path, or that it is the default one.
std::string plan_name(const std::string& path);

/// The problems as an UsageError reads, one a line, each with the file's name.
std::string problems_text(const std::string& path, const std::vector<Problem>& problems);

/// What `work` gives. Where a dry run of the plan cannot keep what it asks for, throws UsageError with the file's name.
template <class Work>
auto dry_run_of(const std::string& path, const Work& work) {
  try {
    return work();
  } catch (const TooManyRecords& error) {
    throw UsageError(problems_text(path, {{"workload.microbatches", error.what()}}));
  }
}

/// On standard error, the parts of the plan's model that are not computed: what is answered leaves them out.
void say_what_is_left_out(const Plan& plan);

struct ScaleFlags {
  std::string scale = "auto";
  std::optional<std::int64_t> batch;
  std::optional<std::int64_t> sequence;

  std::optional<std::int64_t> layers;

  void add_to(CLI::App& command);
  /// For commands that run the layers.
  void add_layers_to(CLI::App& command);
  /// Whether any of them is not as it is without.
  bool given() const { return scale != "auto" || batch || sequence || layers; }
  /// Throws UsageError for a scale that is not auto, full or a positive whole number.
  ScaleOptions options() const;
};

/// As it is asked for: "auto", "full", "8".
std::string to_string(const ScaleOptions& options);

}  // namespace shardproof::tools
