#include "tools/judge_command.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "emu/judge/dump.h"
#include "emu/judge/judge_dump.h"
#include "emu/report/json.h"
#include "emu/report/junit.h"
#include "emu/weights/checkpoint.h"
#include "tools/exit_code.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"
#include "tools/verify_text.h"

namespace shardproof::tools {
namespace {

struct JudgeFlags {
  std::string dump;
  std::string plan;
  std::string checkpoint;
  std::string names;
  std::string profile{rounding::to_string(rounding::RoundingProfile::eager)};
  std::optional<std::string> format;
  std::string json;
  std::string junit;
  bool all_taps = false;
};

std::unique_ptr<Checkpoint> open_weights(const JudgeFlags& flags, const Plan& plan, FileUses& files) {
  if (flags.checkpoint.empty()) return nullptr;
  auto checkpoint = std::make_unique<Checkpoint>(flags.checkpoint);
  for (const std::string& file : checkpoint->files()) files.reads("part of --checkpoint", file);
  const std::vector<Problem> problems = compare_models(plan.model, checkpoint->model());
  if (!problems.empty()) throw UsageError(problems_text(flags.plan, problems));
  return checkpoint;
}

DumpNames read_names(const std::string& path, FileUses& files) {
  if (path.empty()) return DumpNames();
  files.reads("the names that --names gives", path);
  LoadedDumpNames loaded = load_dump_names(path);
  if (!loaded.names) throw UsageError(problems_text(path, loaded.problems));
  return std::move(*loaded.names);
}

Dump read_dump(const JudgeFlags& flags, const RunnablePlan& plan, FileUses& files) {
  const DumpNames names = read_names(flags.names, files);
  OpenedDump opened =
      open_dump(flags.dump, plan, names, flags.format ? ops::parse_format(*flags.format) : std::nullopt);
  if (!opened.dump) {
    std::string text;
    for (const Problem& problem : opened.problems) {
      text += fmt::format("{}{}: {}", text.empty() ? "" : "\n", problem.field, problem.message);
    }
    throw UsageError(text);
  }
  for (const std::string& file : opened.dump->files()) files.reads("part of the dump", file);
  return std::move(*opened.dump);
}

int run_judge(const JudgeFlags& flags) {
  FileUses files;
  const Plan plan = read_plan(flags.plan, files);
  const Runnable runnable = make_runnable(plan);
  if (!runnable.plan) throw UsageError(problems_text(flags.plan, runnable.problems));
  try {
    const std::unique_ptr<Checkpoint> checkpoint = open_weights(flags, plan, files);
    const Dump dump = read_dump(flags, *runnable.plan, files);
    OutputFile json(files, "--json", flags.json);
    OutputFile junit(files, "--junit", flags.junit);
    if (json.is_stdout() && junit.is_stdout()) {
      throw UsageError("only one of --json and --junit can be - (standard output)");
    }
    const VerifyReport report =
        judge_dump(*runnable.plan, dump,
                   {.profile = rounding::parse_rounding_profile(flags.profile).value(), .weights = checkpoint.get()});
    if (json.wanted()) json.write(to_json(report));
    if (junit.wanted()) junit.write(junit_xml({junit_suite(report)}));
    if (!json.is_stdout() && !junit.is_stdout()) {
      say(dump_text(report, flags.all_taps ? TapLines::all : TapLines::one_a_kind));
    }
    return exit_code_of(report.verdict);
  } catch (const CheckpointError& error) {
    throw UsageError(error.what());
  } catch (const DumpError& error) {
    throw UsageError(error.what());
  }
}

}  // namespace

void add_judge_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<JudgeFlags>();
  CLI::App* command = app.add_subcommand("judge", "Hold tensors that another program wrote to the reference, op by op");
  command->add_option("DUMP", flags->dump, "Folder of rank_0.safetensors and so on, or one file of whole tensors")
      ->required();
  command->add_option("PLAN", flags->plan, "Plan of the run: its model, its degrees, its sequences")->required();
  command
      ->add_option("--checkpoint", flags->checkpoint,
                   "The run's weights, a Hugging Face checkpoint (default: those that verify makes of the plan's seed)")
      ->type_name("DIR");
  command
      ->add_option("--profile", flags->profile,
                   "Where the program rounds. eager: after every elementary op; fused: where a kernel stores; ours: as "
                   "verify's own runs do")
      ->check(CLI::IsMember({"eager", "fused", "ours"}))
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--format", flags->format, "What the run computed in (default: the narrowest type in the dump)")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp16"}))
      ->type_name("FORMAT");
  command
      ->add_option("--names", flags->names,
                   "JSON object that says which tap each tensor is: \"layers.{layer}.o_proj\": "
                   "\"layer.{layer}.attention.output\"; null: none")
      ->type_name("FILE");
  command->add_option("--junit", flags->junit, "Write the taps as JUnit XML; - for standard output")
      ->type_name("FILE|-");
  command->add_option("--json", flags->json, "Write the report as JSON; - for standard output")->type_name("FILE|-");
  command->add_flag("--taps", flags->all_taps, "Show every tap, not one line a kind");
  command->callback([flags, &exit_code] { exit_code = run_judge(*flags); });
}

}  // namespace shardproof::tools
