#include "tools/mutate_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/mutate/mutation.h"
#include "emu/plan/runnable.h"
#include "emu/report/json.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/progress.h"
#include "tools/run_memory.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

struct MutateFlags {
  std::string plan;
  ScaleFlags scale;
  std::optional<std::uint64_t> seed;
  int threads = 0;
  std::size_t per_kind = 2;
  std::string format = "exact";
  std::vector<std::string> kinds;
  std::string json;
  bool all = false;
};

std::string of(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? "-" : fmt::format("{}/{}", part, whole);
}

std::string kind_table(const MutationScore& score) {
  std::vector<std::vector<std::string>> rows{
      {"mutation", "instances", "equivalent", "detected", "first tap right", "cause right", "expected cause"}};
  for (const MutationKind& kind : mutation_kinds()) {
    MutationCounts counts;
    std::string causes;
    for (const MutationResult& result : score.results) {
      if (result.mutation.kind != kind.name) continue;
      counts.add(result);
      causes = result.mutation.causes.front();
    }
    if (counts.instances == 0) continue;
    rows.push_back({std::string(kind.name), fmt::format("{}", counts.instances), fmt::format("{}", counts.equivalent),
                    of(counts.detected, counts.instances - counts.equivalent), of(counts.tap_right, counts.detected),
                    of(counts.cause_right, counts.detected), "  " + causes});
  }
  return table(rows, 1);
}

/// A cause's evidence in one line: what follows the first belongs to `verify`.
std::string_view first_line(std::string_view text) {
  return text.substr(0, text.find('\n'));
}

std::string result_text(const MutationResult& result) {
  const Mutation& mutation = result.mutation;
  std::string text =
      fmt::format("  {}{}{}: ", mutation.kind, mutation.layer >= 0 ? fmt::format(", layer {}", mutation.layer) : "",
                  mutation.ranks.empty()       ? ""
                  : mutation.ranks.size() <= 8 ? fmt::format(", ranks {}", fmt::join(mutation.ranks, " "))
                                               : fmt::format(", {} ranks", mutation.ranks.size()));
  if (result.outcome == MutationResult::Outcome::missed) return text + toned("missed", Tone::bad) + "\n";
  if (result.outcome == MutationResult::Outcome::equivalent) return text + "equivalent\n";
  return text +
         fmt::format(
             "{}{}{}: {}{}: {}\n", to_string(result.verdict), result.tap.empty() ? "" : " at " + result.tap,
             result.tap_right ? "" : fmt::format(" (expected {})", mutation.tap.empty() ? "no tap" : mutation.tap),
             result.cause.name,
             result.cause_right ? "" : fmt::format(" (expected {})", fmt::join(mutation.causes, " or ")),
             first_line(result.cause.evidence));
}

std::string percent(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? "-" : fmt::format("{:.1f} %", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string class_text(MutationClass of, const MutationCounts& counts) {
  if (counts.instances == 0) return {};
  const std::int64_t live = counts.instances - counts.equivalent;
  return fmt::format(
      "{}  detected {} of {} ({}), first tap right {} ({}), cause right {} ({}); {} equivalent (every rank taps the "
      "same "
      "bits)\n",
      to_string(of), toned(fmt::format("{}", counts.detected), counts.missed == 0 ? Tone::good : Tone::bad), live,
      percent(counts.detected, live), counts.tap_right, percent(counts.tap_right, counts.detected), counts.cause_right,
      percent(counts.cause_right, counts.detected), counts.equivalent);
}

std::string score_text(const MutationScore& score, bool all) {
  std::string text = kind_table(score) + "\n";
  for (const MutationResult& result : score.results) {
    const bool fine = result.outcome == MutationResult::Outcome::equivalent || (result.tap_right && result.cause_right);
    if (all || !fine) text += result_text(result);
  }
  text += "\n";
  for (const MutationClass of : {MutationClass::sharding, MutationClass::rounding}) {
    text += class_text(of, score.counts(of));
  }
  text += fmt::format("({:.1f} s)\n", score.seconds);
  return text;
}

RunnablePlan plan_of(const MutateFlags& flags, FileUses& files) {
  const ScaleOptions scale = flags.scale.options();
  Plan original = read_plan(flags.plan, files);
  if (flags.seed) original.workload.seed = *flags.seed;
  const Runnable runnable = make_runnable(std::move(original));
  if (!runnable.plan) {
    throw UsageError(problems_text(plan_name(flags.plan), runnable.problems));
  }
  dry_run_of(plan_name(flags.plan), [&] {
    // Its runs of the algebra and of each float format follow one another, beside what the formats are held to.
    require_memory_to_run(runnable.plan->plan(), scale, {.format = ops::Format::bf16, .threads = flags.threads});
  });
  return runnable.plan->scaled(scale);
}

int run_mutate(const MutateFlags& flags) {
  FileUses files;
  OutputFile json(files, "--json", flags.json);
  for (const std::string& name : flags.kinds) {
    if (std::ranges::none_of(mutation_kinds(), [&](const MutationKind& kind) { return kind.name == name; })) {
      throw UsageError(fmt::format("--kind: there is no mutation '{}'", name));
    }
  }
  const RunnablePlan runnable = plan_of(flags, files);
  const Plan& plan = runnable.plan();
  const VerifyReport clean =
      verify(runnable, {.format = ops::Format::exact, .threads = flags.threads, .diagnose = false});
  if (clean.verdict != Verdict::pass) {
    complain(
        fmt::format("the plan itself does not pass ({}): mutations would prove nothing", to_string(clean.verdict)));
    return clean.verdict == Verdict::inconclusive ? kInconclusive : kMismatch;
  }
  MutationOptions options{
      .per_kind = flags.per_kind, .format = *ops::parse_format(flags.format), .threads = flags.threads};
  if (!flags.kinds.empty()) {
    options.wanted = [&](std::string_view name) { return std::ranges::find(flags.kinds, name) != flags.kinds.end(); };
  }
  ProgressLine line(static_cast<double>(mutation_kinds().size()));
  options.progress = [&](const MutationResult& result) {
    const auto kind = std::ranges::find(mutation_kinds(), result.mutation.kind, &MutationKind::name);
    line.show(result.mutation.kind, static_cast<double>(kind - mutation_kinds().begin()));
  };
  const MutationScore score = run_mutations(runnable, options);
  line.clear();
  json.write(json.wanted() ? to_json(std::span(&score, 1)) : std::string());
  if (!json.is_stdout()) {
    say(fmt::format("{}: {} virtual GPU ranks, seed {}\n\n{}", plan.name.empty() ? "plan" : one_line(plan.name),
                    plan.world(), plan.workload.seed, score_text(score, flags.all)));
  }
  MutationCounts counts = score.counts(MutationClass::sharding);
  counts.add(score.counts(MutationClass::rounding));
  if (counts.missed > 0) return kMismatch;
  if (counts.detected > 0) return kPass;
  complain(counts.instances == 0 ? "the plan has no place for such a mutation: nothing was planted, nothing is shown"
                                 : "every mutant leaves all bits as they are: nothing is shown");
  return kInconclusive;
}

}  // namespace

void add_mutate_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<MutateFlags>();
  CLI::App* command = app.add_subcommand(
      "mutate", "Inject each known sharding bug into a plan's run; print what verify detects and names");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  flags->scale.add_to(*command);
  flags->scale.add_layers_to(*command);
  add_seed(*command, "--seed", flags->seed, "Seed of weights and tokens (default: the plan's)");
  add_whole(*command, "--per-kind", flags->per_kind, {1, 5}, "Places to try each mutation at, at most");
  command->add_option("--format", flags->format, "Format that sharding bugs run in (default: exact)")
      ->check(CLI::IsMember({"exact", "fp64", "fp32", "fp16", "bf16"}));
  command->add_option("--kind", flags->kinds, "Only this mutation (may be repeated)")->type_name("NAME");
  add_threads(*command, flags->threads);
  command->add_option("--json", flags->json, "Write the score as JSON; - for standard output")->type_name("FILE|-");
  command->add_flag("--all", flags->all, "Show every mutation, not only those not named rightly");
  command->callback([flags, &exit_code] { exit_code = run_mutate(*flags); });
}

}  // namespace shardproof::tools
