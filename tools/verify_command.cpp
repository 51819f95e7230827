#include "tools/verify_command.h"

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "emu/plan/validate.h"
#include "emu/verify/verify.h"
#include "tools/exit_code.h"
#include "tools/memory.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"
#include "tools/verify_text.h"

namespace shardproof::tools {
namespace {

struct VerifyFlags {
  std::string plan;
  std::optional<std::string> format;
  ScaleFlags scale;
  std::optional<std::uint64_t> seed;
  int threads = 0;
  std::optional<std::uint64_t> schedule;
  std::string json;
  bool all_taps = false;
};

int exit_code_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass:
      return kPass;
    case Verdict::mismatch:
      return kMismatch;
    case Verdict::inconclusive:
      return kInconclusive;
    case Verdict::deadlock:
      return kDeadlock;
    case Verdict::invalid:
      break;
  }
  return kUsage;
}

/// The float format whose rounding is judged when none is asked for: the one that the model's weights are kept in.
ops::Format default_format(const ModelConfig& model) {
  if (model.dtype == "float16") return ops::Format::fp16;
  if (model.dtype == "float32") return ops::Format::fp32;
  if (model.dtype == "float64") return ops::Format::fp64;
  return ops::Format::bf16;
}

ops::Format chosen_format(const VerifyFlags& flags, const ModelConfig& model) {
  return flags.format ? ops::parse_format(*flags.format).value() : default_format(model);
}

/// Refuses a run that cannot fit, with a scale that would.
void require_memory(const Plan& original, const Plan& plan, ops::Format format) {
  const double available = available_memory();
  const double needed = estimated_bytes(plan, format);
  if (needed <= available) return;
  std::string advice = "use --scale auto, or fewer and shorter sequences (--batch, --sequence)";
  for (std::int64_t divisor = 2; divisor <= 4096; divisor *= 2) {
    ScaleOptions smaller{.mode = ScaleOptions::Mode::divide, .divisor = divisor};
    smaller.batch = plan.workload.batch();
    const Plan candidate = scaled(original, smaller);
    if (estimated_bytes(candidate, format) <= available) {
      advice = fmt::format("--scale {} would need {}", divisor, human_bytes(estimated_bytes(candidate, format)));
      break;
    }
  }
  throw UsageError(fmt::format("--scale: this run needs about {} of memory, {} are available; {}", human_bytes(needed),
                               human_bytes(available), advice));
}

/// A line that is rewritten as layers complete, on a terminal only.
class ProgressLine {
 public:
  void show(const Progress& progress) {
    fmt::print(stderr, "\r\x1b[K  {}: layer {} of {}", progress.run, progress.layer + 1, progress.layers);
    std::fflush(stderr);
    shown_ = true;
  }
  void clear() {
    if (shown_) fmt::print(stderr, "\r\x1b[K");
    shown_ = false;
  }

 private:
  bool shown_ = false;
};

int run_verify(const VerifyFlags& flags) {
  const ScaleOptions scale = flags.scale.options();
  OutputFile json("--json", flags.json);
  const std::string file = flags.plan.empty() ? "default plan" : flags.plan;
  Plan original = read_plan(flags.plan);
  if (flags.seed) original.workload.seed = *flags.seed;

  VerifyOptions options{
      .format = chosen_format(flags, original.model), .threads = flags.threads, .schedule = flags.schedule};
  VerifyReport report;
  report.problems = validate(original);
  const bool human = !json.is_stdout();
  if (report.problems.empty()) {
    const Plan plan = scaled(original, scale);
    require_memory(original, plan, ops::Format::exact);
    if (human) fmt::print("{}", plan_text(plan, original, flags.scale.scale));
    std::fflush(stdout);
    ProgressLine line;
    if (human && stderr_is_terminal()) options.progress = [&](const Progress& progress) { line.show(progress); };
    report = prove(plan, options);
    line.clear();
  } else {
    report.plan = original;
    report.format = options.format;
  }
  json.write(json.wanted() ? to_json(report) : std::string());
  if (report.verdict == Verdict::invalid) throw UsageError(problems_text(file, report.problems));
  if (human) fmt::print("{}", report_text(report, flags.all_taps));
  return exit_code_of(report.verdict);
}

}  // namespace

void add_verify_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command =
      app.add_subcommand("verify", "Run a plan on virtual ranks and hold every tap to an unsharded float64 reference");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  command
      ->add_option("--format", flags->format,
                   "Judge the rounding in this format, after the algebra in exact; exact: the algebra alone "
                   "(default: the model's dtype)")
      ->check(CLI::IsMember({"exact", "fp64", "fp32", "bf16", "fp16"}))
      ->type_name("FORMAT");
  flags->scale.add_to(*command);
  command->add_option("--seed", flags->seed, "Seed of weights and tokens (default: the plan's)")->type_name("N");
  command->add_option("--threads", flags->threads, "Threads to run on (default: all that the process may use)")
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
  command->add_option("--schedule", flags->schedule, "Run on one thread, in the order that this seed gives")
      ->type_name("SEED");
  command->add_option("--json", flags->json, "Write the report as JSON; - for standard output")->type_name("FILE|-");
  command->add_flag("--taps", flags->all_taps, "Show every tap, not one line a kind");
  command->callback([flags, &exit_code] { exit_code = run_verify(*flags); });
}

}  // namespace shardproof::tools
