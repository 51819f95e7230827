#include "tools/verify_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "emu/judge/verify.h"
#include "emu/plan/runnable.h"
#include "emu/report/baseline.h"
#include "emu/report/json.h"
#include "emu/report/junit.h"
#include "emu/weights/checkpoint.h"
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
  std::string all_reduce = "rank_order";
  std::optional<std::string> wire;
  std::optional<std::string> accumulate;
  std::string checkpoint;
  std::string json;
  std::string junit;
  std::string record;
  std::string baseline;
  bool all_taps = false;

  bool all_orders() const { return all_reduce == "all"; }
  bool uses_baseline() const { return !record.empty() || !baseline.empty(); }
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
  // A baseline is of bits unless a float format is asked for: only those hold on every machine.
  if (!flags.format && flags.uses_baseline()) return ops::Format::exact;
  return flags.format ? ops::parse_format(*flags.format).value() : default_format(model);
}

std::optional<ops::Format> parsed(const std::optional<std::string>& format) {
  return format ? ops::parse_format(*format) : std::nullopt;
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

/// Where results go; every place is tried before anything is computed.
struct Outputs {
  explicit Outputs(const VerifyFlags& flags)
      : json("--json", flags.json), junit("--junit", flags.junit), record("--record", flags.record) {
    int to_stdout = 0;
    for (const OutputFile* file : {&json, &junit, &record}) to_stdout += file->is_stdout() ? 1 : 0;
    if (to_stdout > 1) throw UsageError("only one of --json, --junit and --record can be - (standard output)");
  }
  bool human() const { return !json.is_stdout() && !junit.is_stdout() && !record.is_stdout(); }

  OutputFile json;
  OutputFile junit;
  OutputFile record;
};

std::optional<Baseline> read_baseline(const std::string& path) {
  if (path.empty()) return std::nullopt;
  LoadedBaseline loaded = load_baseline(path);
  if (!loaded.baseline) throw UsageError(problems_text(path, loaded.problems));
  return std::move(loaded.baseline);
}

/// Opens the checkpoint and holds the plan's model to it; weights cannot be scaled.
std::unique_ptr<Checkpoint> open_checkpoint(const VerifyFlags& flags, const Plan& plan) {
  if (flags.checkpoint.empty()) return nullptr;
  if (flags.scale.scale != "auto" && flags.scale.scale != "full") {
    throw UsageError(
        fmt::format("--scale {}: a checkpoint's weights cannot be scaled; leave --scale out", flags.scale.scale));
  }
  auto checkpoint = [&] {
    try {
      return std::make_unique<Checkpoint>(flags.checkpoint);
    } catch (const CheckpointError& error) {
      throw UsageError(fmt::format("--checkpoint: {}", error.what()));
    }
  }();
  const std::vector<Problem> problems = compare_models(plan.model, checkpoint->model());
  if (!problems.empty()) throw UsageError(problems_text(flags.plan.empty() ? "default plan" : flags.plan, problems));
  return checkpoint;
}

/// Runs the plan; the report of an invalid one carries its problems.
VerifyReport run_plan(const VerifyFlags& flags, const Plan& original, const Checkpoint* checkpoint, bool human) {
  VerifyOptions options{.format = chosen_format(flags, original.model),
                        .threads = flags.threads,
                        .schedule = flags.schedule,
                        .weights = checkpoint,
                        .all_reduce = parse_algorithm(flags.all_reduce).value_or(Algorithm::rank_order),
                        .wire = parsed(flags.wire),
                        .accumulate = parsed(flags.accumulate)};
  Runnable runnable = make_runnable(original);
  if (!runnable.plan) return {.plan = original, .format = options.format, .problems = std::move(runnable.problems)};

  ScaleFlags scale_flags = flags.scale;
  if (checkpoint != nullptr) scale_flags.scale = "full";
  const RunnablePlan run = runnable.plan->scaled(scale_flags.options());
  const Plan& plan = run.plan();
  if (checkpoint != nullptr && checkpoint->sliding_window()) {
    const std::int64_t longest = std::ranges::max(plan.workload.lengths);
    if (longest > *checkpoint->sliding_window()) {
      throw UsageError(
          fmt::format("--checkpoint: sequences of {} tokens reach past the sliding window of {}, which is not "
                      "emulated; use --sequence {}",
                      longest, *checkpoint->sliding_window(), *checkpoint->sliding_window()));
    }
  }
  require_memory(original, plan, options.format);
  if (human) fmt::print("{}", plan_text(plan, original, scale_flags.scale));
  std::fflush(stdout);
  ProgressLine line;
  if (human && stderr_is_terminal()) options.progress = [&](const Progress& progress) { line.show(progress); };
  VerifyReport report = prove(run, options);
  line.clear();
  return report;
}

/// One run for each order of the all-reduce, and a table of how much each rounds.
int compare_orders(const VerifyFlags& flags, const Plan& original, const Checkpoint* checkpoint, Outputs& outputs) {
  if (flags.uses_baseline() || outputs.junit.wanted()) {
    throw UsageError("--all-reduce all compares orders: it takes --json, but no --record, --baseline or --junit");
  }
  std::vector<OrderReport> orders;
  int exit_code = kPass;
  for (const Algorithm algorithm : kAlgorithms) {
    VerifyFlags one = flags;
    one.all_reduce = to_string(algorithm);
    const bool first = orders.empty();
    orders.push_back({algorithm, run_plan(one, original, checkpoint, outputs.human() && first)});
    const VerifyReport& report = orders.back().report;
    if (report.verdict == Verdict::invalid) {
      throw UsageError(problems_text(flags.plan.empty() ? "default plan" : flags.plan, report.problems));
    }
    exit_code = std::max(exit_code, exit_code_of(report.verdict));
  }
  if (outputs.json.wanted()) outputs.json.write(to_json(orders));
  if (outputs.human()) fmt::print("{}", orders_text(orders));
  return exit_code;
}

int run_verify(const VerifyFlags& flags) {
  static_cast<void>(flags.scale.options());  // refuses a bad --scale before anything is read
  Outputs outputs(flags);
  const std::optional<Baseline> recorded = read_baseline(flags.baseline);
  Plan original = read_plan(flags.plan);
  if (flags.seed) original.workload.seed = *flags.seed;
  const std::unique_ptr<Checkpoint> checkpoint = open_checkpoint(flags, original);

  if (flags.all_orders()) return compare_orders(flags, original, checkpoint.get(), outputs);
  const VerifyReport report = run_plan(flags, original, checkpoint.get(), outputs.human());
  Baseline now = baseline_of(report);
  if (checkpoint) now.weights = "checkpoint";
  std::optional<BaselineChange> change;
  if (recorded && report.verdict == Verdict::pass) change = first_change(*recorded, now);

  if (outputs.json.wanted()) outputs.json.write(to_json(report));
  if (outputs.junit.wanted()) {
    JunitSuite suite = junit_suite(report);
    if (recorded) suite.cases.push_back(junit_case(*recorded, change));
    outputs.junit.write(junit_xml({suite}));
  }
  if (report.verdict == Verdict::invalid) {
    throw UsageError(problems_text(flags.plan.empty() ? "default plan" : flags.plan, report.problems));
  }
  // A run that is not right is no baseline.
  if (outputs.record.wanted() && report.verdict == Verdict::pass) outputs.record.write(to_json(now));
  if (outputs.human()) fmt::print("{}", report_text(report, flags.all_taps));
  if (outputs.human() && recorded && report.verdict == Verdict::pass) fmt::print("{}", baseline_text(change));
  const int verdict = exit_code_of(report.verdict);
  return verdict == kPass && change ? kMismatch : verdict;
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
  command
      ->add_option("--all-reduce", flags->all_reduce,
                   "Sum in the order of this algorithm; all: compare how much each rounds")
      ->check(CLI::IsMember({"rank_order", "ring", "tree", "recursive_doubling", "hierarchical", "all"}))
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--wire", flags->wire, "Round what reductions send to this format (default: not at all)")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp16"}))
      ->type_name("FORMAT");
  command->add_option("--accumulate", flags->accumulate, "Round each addition of a reduction to this format")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp16"}))
      ->type_name("FORMAT");
  command->add_option("--checkpoint", flags->checkpoint, "Run on a Hugging Face checkpoint's weights (safetensors)")
      ->type_name("DIR");
  command
      ->add_option("--record", flags->record,
                   "Write a baseline of what every tap is (in exact unless --format says otherwise)")
      ->type_name("FILE|-");
  command
      ->add_option("--baseline", flags->baseline,
                   "Compare with a recorded baseline; exit 1 at the first tap that changed")
      ->type_name("FILE");
  command->add_option("--junit", flags->junit, "Write the taps as JUnit XML; - for standard output")
      ->type_name("FILE|-");
  command->add_option("--json", flags->json, "Write the report as JSON; - for standard output")->type_name("FILE|-");
  command->add_flag("--taps", flags->all_taps, "Show every tap, not one line a kind");
  command->callback([flags, &exit_code] { exit_code = run_verify(*flags); });
}

}  // namespace shardproof::tools
