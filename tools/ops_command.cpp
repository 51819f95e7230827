#include "tools/ops_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/plan/validate.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/file_uses.h"
#include "tools/memory.h"
#include "tools/ops_json.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/progress.h"
#include "tools/rank_ops.h"
#include "tools/terminal.h"
#include "tools/timed_op.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

/// Of what is free: the rest of the process, and others, need some too.
constexpr double kMemoryShare = 0.7;

struct OpsFlags {
  std::string plan;
  int rank = 0;
  std::string phase = "prefill";
  std::string format;
  int repetitions = 5;
  std::string json;
};

std::string names_of(const CountedOp& op) {
  std::string names;
  for (const Op name : op.names) names += fmt::format("{}{}", names.empty() ? "" : ", ", to_string(name));
  return names;
}

std::vector<std::string> row_of(const TimedOp& timed) {
  const OpShape& shape = timed.op.shape;
  std::vector<std::string> row{to_string(shape.kernel), describe(shape), fmt::format("{}", timed.op.count)};
  if (timed.timed()) {
    const double seconds = timed.median_seconds();
    row.push_back(fmt::format("{:.2f}", seconds * 1e6));
    row.push_back(fmt::format("{:.2f}", seconds * 1e3 * static_cast<double>(timed.op.count)));
    row.push_back(timed.cost.flops > 0 ? fmt::format("{:.2f}", timed.cost.flops / seconds * 1e-9) : "-");
    row.push_back(fmt::format("{:.2f}", timed.cost.bytes / seconds * 1e-9));
    row.push_back(timed.limited_by_arithmetic ? "flops" : "bytes");
    row.push_back(fmt::format("{:.2f}", timed.of_limit()));
    row.push_back(timed.part < 1 ? fmt::format("{:.3g}", timed.part) : "1");
  } else {
    row.insert(row.end(), 7, "-");
  }
  row.push_back(timed.wrong.empty() ? "0" : "1");
  row.push_back(names_of(timed.op));
  return row;
}

/// Lines like those of `collectives`: a head that begins with #, left columns first.
std::string ops_table(const OpsReport& report) {
  std::vector<std::vector<std::string>> rows{{"# op", "shape", "count", "time (us)", "sum (ms)", "GFLOP/s", "GB/s",
                                              "limit of", "limit", "part", "wrong", "in"}};
  for (const TimedOp& timed : report.ops) rows.push_back(row_of(timed));
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const bool left = i < 2 || i + 1 == row.size();
      line += (i == 0 ? "" : "  ") +
              (left ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("{:>{}}", row[i], widths[i]));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string ops_text(const OpsReport& report) {
  std::string text = fmt::format("{}: rank {}, {}, {}, one thread\n{}", one_line(report.plan), report.rank,
                                 report.phase, ops::to_string(report.format), ops_table(report));
  const double seconds = report.step_seconds();
  text += fmt::format(
      "step: {:.3f} s for {:.1f} GFLOP of one rank's ops, {:.1f} GFLOP/s; its {} calls of collectives "
      "are not in it\n",
      seconds, report.step_flops() * 1e-9, seconds > 0 ? report.step_flops() * 1e-9 / seconds : 0, report.calls);
  return text;
}

/// What the sum leaves out, on standard error.
void say_what_is_missing(const OpsReport& report) {
  for (const LeftOut& op : report.left_out) {
    complain(fmt::format("left out: {} ({} calls): {}", to_string(op.op), op.count, op.why));
  }
  for (const TimedOp& timed : report.ops) {
    const std::string name = fmt::format("{}, {}", to_string(timed.op.shape.kernel), describe(timed.op.shape));
    if (!timed.left_out.empty()) {
      complain(fmt::format("left out: {} ({} calls): {}", name, timed.op.count, timed.left_out));
    }
    if (!timed.wrong.empty()) complain(fmt::format("wrong result: {}: {}", name, timed.wrong));
  }
}

Plan valid_plan(const OpsFlags& flags, FileUses& files) {
  Plan plan = read_plan(flags.plan, files);
  const std::vector<Problem> problems = validate(plan);
  if (!problems.empty()) throw UsageError(problems_text(plan_name(flags.plan), problems));
  if (flags.rank >= plan.world()) {
    throw UsageError(fmt::format("--rank: {} is not among the plan's ranks, 0 to {}", flags.rank, plan.world() - 1));
  }
  say_what_is_left_out(plan);
  return plan;
}

int run_ops(const OpsFlags& flags) {
  FileUses files;
  const Plan plan = valid_plan(flags, files);
  OutputFile json(files, "--json", flags.json);
  OpsReport report{.plan = plan.name, .rank = flags.rank, .phase = flags.phase};
  report.format = flags.format.empty() ? format_of(plan.model) : ops::parse_format(flags.format).value();
  const DryPass pass = flags.phase == "decode" ? DryPass::decode : DryPass::prefill;
  RankOps ops = dry_run_of(plan_name(flags.plan), [&] { return rank_ops(plan, flags.rank, report.format, pass); });
  report.left_out = std::move(ops.left_out);
  report.calls = ops.calls;
  ProgressLine progress(static_cast<double>(ops.ops.size()));
  for (const CountedOp& op : ops.ops) {
    report.ops.push_back(time_op(
        op, report.format, {.repetitions = flags.repetitions, .memory = kMemoryShare * available_memory().bytes}));
    progress.complete_one(fmt::format("{}, {}", to_string(op.shape.kernel), describe(op.shape)));
  }
  progress.clear();
  if (!json.is_stdout()) say(ops_text(report));
  if (json.wanted()) json.write(to_json(report));
  say_what_is_missing(report);
  const bool wrong = std::ranges::any_of(report.ops, [](const TimedOp& timed) { return !timed.wrong.empty(); });
  return wrong ? kMismatch : kPass;
}

}  // namespace

void add_ops_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<OpsFlags>();
  CLI::App* command = app.add_subcommand("ops", "Time the ops that one rank of a plan runs at full scale, checked");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  add_whole(*command, "--rank", flags->rank, {0, kMaxWorld - 1}, "Whose ops");
  command->add_option("--phase", flags->phase, "prefill: all tokens; decode: one more token of each sequence")
      ->check(CLI::IsMember({"prefill", "decode"}))
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--format", flags->format, "Format that results are stored in (default: the model's)")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16", "fp64", "exact"}))
      ->type_name("NAME");
  add_whole(*command, "--repetitions", flags->repetitions, {1, 1000},
            "How often each op is timed; 9 or more for comparisons");
  command->add_option("--json", flags->json, "Write what was timed as Google Benchmark does; - for standard output")
      ->type_name("FILE|-");
  command->footer(
      "time is of the thread, the median of the repetitions; limit is the share of what the machine was measured to "
      "do\n"
      "beside it (limit of: flops of independent multiply-adds, or bytes of plain reads or copies). Of an op that "
      "takes\n"
      "longer than about a second a part of its rows, or of attention's heads, is run, and its time is for all.\n"
      "Exit codes: 0 every result right, 1 a wrong result, 2 usage or an invalid plan.");
  command->callback([flags, &exit_code] { exit_code = run_ops(*flags); });
}

}  // namespace shardproof::tools
