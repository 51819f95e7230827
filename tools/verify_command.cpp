#include "tools/verify_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "emu/judge/dump_writer.h"
#include "emu/judge/generate.h"
#include "emu/plan/batch.h"
#include "emu/plan/save.h"
#include "emu/report/baseline.h"
#include "emu/report/json.h"
#include "emu/report/junit.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"
#include "tools/verify_request.h"
#include "tools/verify_text.h"

namespace shardproof::tools {
namespace {

/// Where results go; every place is tried before anything is computed.
struct Outputs {
  Outputs(const VerifyFlags& flags, FileUses& files)
      : json(files, "--json", flags.json),
        junit(files, "--junit", flags.junit),
        record(files, "--record", flags.record),
        dump(flags.dump) {
    int to_stdout = 0;
    for (const OutputFile* file : {&json, &junit, &record}) to_stdout += file->is_stdout() ? 1 : 0;
    if (to_stdout > 1) throw UsageError("only one of --json, --junit and --record can be - (standard output)");
  }
  bool human() const { return !json.is_stdout() && !junit.is_stdout() && !record.is_stdout(); }

  OutputFile json;
  OutputFile junit;
  OutputFile record;
  std::string dump;  ///< a folder, or empty
};

/// Makes the folder, or takes an empty one.
void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw UsageError(fmt::format("--dump: cannot make the folder '{}': {}", path, error.message()));
  if (!std::filesystem::is_empty(path, error)) {
    throw UsageError(fmt::format("--dump: '{}' is not empty; name a new folder", path));
  }
}

/// The plan as it was run, and what each rank made of the taps. The plan comes last: a folder without it is not whole.
void write_dump(const std::string& folder, const VerifyReport& report, const DumpWriter& ranks, FileUses& files) {
  const Batch batch(report.plan.workload, report.plan.model.vocab_size);
  for (int rank = 0; rank < report.plan.world(); ++rank) {
    OutputFile(files, "--dump", fmt::format("{}/rank_{}.safetensors", folder, rank))
        .write(ranks.file(rank, batch.tokens()));
  }
  OutputFile(files, "--dump", folder + "/plan.json").write(plan_json(report.plan, 2) + "\n");
}

std::optional<Baseline> read_baseline(const std::string& path) {
  if (path.empty()) return std::nullopt;
  LoadedBaseline loaded = load_baseline(path);
  if (!loaded.baseline) throw UsageError(problems_text(path, loaded.problems));
  return std::move(loaded.baseline);
}

/// The plan at the size that is run, shown to people.
RunnablePlan shown_plan(const Request& request, const RunnablePlan& original, const Outputs& outputs) {
  RunnablePlan run = scaled_to_run(request, original);
  if (outputs.human()) say(plan_text(run, original.plan(), to_string(request.scale)));
  finish_standard_output();
  return run;
}

Proof prove_with(const Request& request, const RunnablePlan& run, Algorithm all_reduce, const Outputs& outputs,
                 TapSink* taps = nullptr) {
  VerifyOptions options = request.options;
  options.taps = taps;
  options.all_reduce = all_reduce;
  options.amplification = request.options.amplification || request.orders.size() > 1;
  const bool exact = options.format == ops::Format::exact;
  // The reference and the sharded run of the algebra, the sharded run of the rounding, and what it is compared with.
  const int runs = (exact ? 2 : 3) + (options.amplification || options.max_amplification ? 3 : 0);
  ProgressLine line(static_cast<double>(run.plan().model.layers.size()) * runs);
  if (outputs.human()) {
    options.progress = [&](const Progress& progress) {
      line.complete_one(fmt::format("{}: layer {} of {}", progress.run, progress.layer + 1, progress.layers));
    };
  }
  try {
    return prove(run, options);
  } catch (const CheckpointError& error) {
    throw UsageError(fmt::format("--checkpoint: {}", error.what()));
  }
}

/// One run for each order of the all-reduce, and a table of how much each rounds.
int compare_orders(const Request& request, const RunnablePlan& original, Outputs& outputs) {
  const RunnablePlan run = shown_plan(request, original, outputs);
  std::vector<OrderReport> orders;
  int exit_code = kPass;
  for (const Algorithm algorithm : request.orders) {
    const OrderReport& order =
        orders.emplace_back(OrderReport{algorithm, prove_with(request, run, algorithm, outputs)});
    exit_code = std::max(exit_code, exit_code_of(order.proof.verdict()));
  }
  if (outputs.json.wanted()) outputs.json.write(to_json(orders));
  if (outputs.human()) say(orders_text(orders));
  return exit_code;
}

/// What a proof is held to beside its own verdicts.
struct Comparison {
  std::optional<Baseline> recorded;
  Baseline now;
  std::optional<BaselineChange> change;  ///< of a run that passes
};

void write_documents(const Proof& proof, const std::optional<Generation>& generation, const Comparison& compared,
                     Outputs& outputs) {
  if (outputs.json.wanted()) outputs.json.write(generation ? to_json(proof, *generation) : to_json(proof));
  if (outputs.junit.wanted()) {
    JunitSuite suite = junit_suite(proof.last());
    if (compared.recorded) suite.cases.push_back(junit_case(*compared.recorded, compared.change));
    outputs.junit.write(junit_xml({suite}));
  }
  // A run that is not right is no baseline.
  if (outputs.record.wanted() && proof.verdict() == Verdict::pass) outputs.record.write(to_json(compared.now));
}

/// Writes what is said of a plan that is not run, and refuses it.
[[noreturn]] void refuse(const Request& request, const std::vector<Problem>& problems, Outputs& outputs) {
  if (request.orders.size() == 1) {
    const Proof proof{.algebra = {.plan = request.original, .format = request.options.format, .problems = problems},
                      .rounding = {}};
    write_documents(proof, {}, {}, outputs);
  }
  throw UsageError(problems_text(request.name, problems));
}

/// What the sharded program puts out; `run` becomes the plan with these tokens.
Generation generate_tokens(const Request& request, RunnablePlan& run) {
  const std::optional<Serving>& serving = run.plan().workload.serving;
  if (!serving ||
      std::ranges::none_of(serving->requests, [](const shardproof::Request& served) { return served.output > 0; })) {
    throw UsageError(
        "--generate: no request has an output; workload.requests, or batch, prompt and output, are needed");
  }
  if (request.options.format == ops::Format::exact) {
    throw UsageError("--generate: tokens are chosen by logits in a float format; name another --format than exact");
  }
  Generation generation = generate(run, request.options);
  if (Runnable made = make_runnable(generation.plan); made.plan) run = *std::move(made.plan);
  return generation;
}

int run_verify(const VerifyFlags& flags) {
  const ScaleOptions scale = flags.scale.options();
  FileUses files;
  if (!flags.baseline.empty()) files.reads("the baseline that --baseline holds the run to", flags.baseline);
  Outputs outputs(flags, files);
  Comparison compared{.recorded = read_baseline(flags.baseline), .now = {}, .change = {}};
  const Request request = read_request(flags, scale, files);
  const bool comparing_orders = request.orders.size() > 1;
  if (comparing_orders &&
      (flags.generate || flags.uses_baseline() || outputs.junit.wanted() || !outputs.dump.empty())) {
    throw UsageError(
        "--all-reduce all compares orders: it takes --json, but no --record, --baseline, --junit, --dump or "
        "--generate");
  }
  const Runnable original = make_runnable(request.original);
  if (!original.plan) refuse(request, original.problems, outputs);
  if (comparing_orders) return compare_orders(request, *original.plan, outputs);

  std::optional<DumpWriter> dumped;
  if (!outputs.dump.empty()) {
    if (request.options.format == ops::Format::exact) {
      throw UsageError("--dump: a dump is of a float format; name another --format than exact");
    }
    make_folder(outputs.dump);
    dumped.emplace(request.options.format);
  }
  RunnablePlan run = shown_plan(request, *original.plan, outputs);
  std::optional<Generation> generation;
  if (flags.generate) generation = generate_tokens(request, run);
  const Proof proof = prove_with(request, run, request.orders.front(), outputs, dumped ? &*dumped : nullptr);
  if (dumped && proof.rounding) write_dump(outputs.dump, *proof.rounding, *dumped, files);
  if (dumped && !proof.rounding) {
    complain(fmt::format("--dump: '{}' stays empty: the algebra is wrong, and nothing ran in {}", outputs.dump,
                         ops::to_string(request.options.format)));
  }
  compared.now = baseline_of(proof.last());
  if (request.checkpoint) compared.now.weights = "checkpoint";
  const bool passed = proof.verdict() == Verdict::pass;
  if (compared.recorded && passed) compared.change = first_change(*compared.recorded, compared.now);

  write_documents(proof, generation, compared, outputs);
  if (outputs.human()) {
    say(proof_text(proof, flags.all_taps ? TapLines::all : TapLines::one_a_kind));
    if (generation) say(generation_text(*generation));
    if (compared.recorded && passed) say(baseline_text(compared.change));
  }
  if (generation && generation->contradicts_itself() && passed) return kMismatch;
  return compared.change ? kMismatch : exit_code_of(proof.verdict());
}

std::vector<std::string> all_reduce_names() {
  std::vector<std::string> names;
  for (const Algorithm algorithm : kAlgorithms) names.emplace_back(to_string(algorithm));
  names.emplace_back(kAllOrders);
  return names;
}

}  // namespace

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
  flags->scale.add_layers_to(*command);
  add_seed(*command, "--seed", flags->seed, "Seed of weights and tokens (default: the plan's)");
  add_threads(*command, flags->threads);
  add_seed(*command, "--schedule", flags->schedule, "Run on one thread, in the order that this seed gives");
  command
      ->add_option("--all-reduce", flags->all_reduce,
                   "Sum in the order of this algorithm; all: compare how much each rounds")
      ->check(CLI::IsMember(all_reduce_names()))
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
  command
      ->add_option("--dump", flags->dump,
                   "Write every tap of the run in the float format, one .safetensors a rank, for judge")
      ->type_name("DIR");
  command->add_flag("--amplification", flags->amplification,
                    "Also measure how far rounding carries from end to end, against an unsharded run");
  add_positive(*command, "--max-amplification", flags->max_amplification,
               "Measure it, and exit 1 where the sharded run's error is more than X times the unsharded one's");
  command->add_flag("--generate", flags->generate,
                    "Decode greedily: what the requests put out is what the sharded program makes of their prompts");
  command->add_flag("--taps", flags->all_taps, "Show every tap, not one line a kind");
  command->callback([flags, &exit_code] { exit_code = run_verify(*flags); });
}

}  // namespace shardproof::tools
