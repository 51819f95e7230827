#include "tools/search_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/model/fields.h"
#include "emu/paper/figures.h"
#include "emu/plan/save.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "emu/report/search_run.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/run_memory.h"
#include "tools/search_request.h"
#include "tools/search_text.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

constexpr std::int64_t kMostListed = 1000;

/// The best, at most so many, as plans: those within the limits.
std::vector<Plan> winners(const SearchRun& run, std::int64_t most) {
  std::vector<Plan> plans;
  const std::int64_t count = std::min(most, run.report.good());
  for (std::int64_t i = 0; i < count; ++i) {
    const TimedLayout& layout = run.report.ranked[static_cast<std::size_t>(i)];
    Plan& plan = plans.emplace_back(plan_of(run.space, layout.choice));
    plan.notes.push_back(fmt::format("Place {} of {} layouts that fit {} GPUs: {}.", i + 1, run.report.ranked.size(),
                                     run.space.gpus, shardproof::describe(layout.choice)));
  }
  return plans;
}

/// The folder is made where it is not there yet.
void write_plans(const std::string& folder, const std::vector<Plan>& plans, FileUses& files) {
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const std::filesystem::path path = std::filesystem::path(folder) / fmt::format("best_{}.json", i + 1);
    OutputFile(files, "--write", path.string()).write(plan_json(plans[i]) + "\n");
  }
}

void make_folder(const std::string& folder) {
  std::error_code error;
  if (folder.empty()) return;
  std::filesystem::create_directories(folder, error);
  if (!std::filesystem::is_directory(folder, error)) {
    throw UsageError(fmt::format("--write: {} is no folder, and none can be made there", folder));
  }
}

/// As `verify --layers` would.
Verdict proven(const Plan& plan, const SearchFlags& flags) {
  const Runnable runnable = make_runnable(plan);
  if (!runnable.plan) throw UsageError(problems_text("--prove", runnable.problems));
  const ScaleOptions scale{.layers = flags.layers};
  const ops::Format format = format_of(plan.model);
  dry_run_of("--prove", [&] { require_memory_to_run(plan, scale, {.format = format, .threads = flags.threads}); });
  return prove(runnable.plan->scaled(scale), {.format = format, .threads = flags.threads}).verdict();
}

std::string proof_line(std::size_t i, Verdict verdict, std::int64_t layers) {
  return fmt::format("best {}: {} (verified with {} layer{} of each kind, widths scaled down)\n", i + 1,
                     toned(to_string(verdict), verdict == Verdict::pass ? Tone::good : Tone::bad), layers,
                     layers == 1 ? "" : "s");
}

int run_search(const SearchFlags& flags) {
  FileUses files;
  OutputFile json(files, "--json", flags.json);
  SearchRequest request = read_request(flags, files);
  make_folder(flags.write);
  say_what_is_left_out(request.space.base);
  SearchRun run{.space = std::move(request.space), .options = std::move(request.options)};
  dry_run_of(flags.model, [&] {
    run.report = search(run.space, run.options);
    if (request.given) run.given = place(*request.given, run.options, run.report);
  });
  const bool human = !json.is_stdout();
  if (human) say(search_text(run, flags.top));
  finish_standard_output();
  const std::vector<Plan> best =
      winners(run, std::max<std::int64_t>({1, flags.prove, flags.write.empty() ? 1 : flags.top}));
  if (!flags.write.empty()) write_plans(flags.write, best, files);
  int exit_code = best.empty() ? kMismatch : kPass;
  for (std::size_t i = 0; i < best.size() && std::cmp_less(i, flags.prove); ++i) {
    const Verdict verdict = run.proven.emplace_back(proven(best[i], flags));
    if (human) say(proof_line(i, verdict, flags.layers));
    exit_code = std::max(exit_code, exit_code_of(verdict));
  }
  if (best.empty()) complain(run.report.ranked.empty() ? "no layout fits" : "no layout keeps the limits of --slo");
  if (json.wanted()) json.write(to_json(run));
  return exit_code;
}

}  // namespace

void add_search_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<SearchFlags>();
  CLI::App* command = app.add_subcommand("search", "The best plans for so many GPUs, by the virtual clock");
  command->add_option("MODEL", flags->model,
                      "A config.json, a checkpoint's folder, or a plan, whose workload is taken");
  add_whole(*command, "--gpus", flags->gpus, {1, kMaxWorld}, "How many; all are used (default: the plan's)");
  add_whole(*command, "--gpus-per-node", flags->gpus_per_node, {1, kMaxWorld}, "Of a node (default: the plan's, or 8)");
  add_positive(*command, "--memory-gb", flags->memory_gb, "Of a GPU (default: the plan's, or the card's)");
  flags->hardware.add_to(*command);
  add_whole(*command, "--prompt", flags->prompt, {1, 1 << 24}, "Tokens in (default: the plan's, or 1024)");
  add_whole(*command, "--output", flags->output, {0, 1 << 24}, "Tokens out (default: the plan's, or 128)");
  command->add_option("--batch", flags->batch, "Requests at once, or several sizes (default: the plan's, or 8 a GPU)")
      ->type_name("SIZES");
  command->add_option("--max", flags->most, "What is to be the most: throughput (the default)")
      ->check(CLI::IsMember({"throughput"}))
      ->type_name("WHAT");
  command->add_option("--min", flags->least, "What is to be the least: tpot or ttft")
      ->check(CLI::IsMember({"tpot", "ttft"}))
      ->type_name("WHAT");
  command->add_option("--slo", flags->slo, "Limits, with units: ttft=10s,tpot=50ms")->type_name("LIMITS");
  command->add_flag(
      "--exhaustive", flags->exhaustive,
      "Try dispatch, overlap and dcp on every layout, not on the best alone; takes two to ten times as long");
  add_whole(*command, "--top", flags->top, {1, kMostListed}, "How many are listed, and written");
  command->add_option("--write", flags->write, "Write the best as plan files into this folder")->type_name("DIR");
  add_whole(*command, "--prove", flags->prove, {0, kMostListed}, "Verify the best N; one that fails fails the search");
  add_whole(*command, "--layers", flags->layers, {1, kMaxLayers}, "Of a proof: the first N layers of each kind");
  add_threads(*command, flags->threads);
  command->add_option("--json", flags->json, "Write every layout as JSON; - for standard output")->type_name("FILE|-");
  command->footer(
      "Exit codes: 0 found (and proven), 1 nothing fits or keeps the limits, or a proof fails, 2 usage or an invalid "
      "plan.");
  command->callback([flags, &exit_code] { exit_code = run_search(*flags); });
}

}  // namespace shardproof::tools
