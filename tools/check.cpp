#include "tools/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>

#include "emu/paper/check.h"
#include "emu/report/json.h"
#include "emu/report/markdown.h"
#include "tools/arguments.h"
#include "tools/check_text.h"
#include "tools/exit_code.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

struct CheckFlags {
  std::string plan;
  std::string json;
  std::string markdown;
  bool report_only = false;
  bool all = false;
  bool list_quantities = false;
};

int run_check(const CheckFlags& flags) {
  if (flags.list_quantities) {
    if (!flags.plan.empty() || !flags.json.empty() || !flags.markdown.empty()) {
      throw UsageError("--list-quantities needs no plan and writes no report; leave PLAN, --json and --markdown out");
    }
    say(quantity_list());
    return kPass;
  }
  FileUses files;
  OutputFile json(files, "--json", flags.json);
  OutputFile markdown(files, "--markdown", flags.markdown);
  if (json.is_stdout() && markdown.is_stdout()) {
    throw UsageError("--json and --markdown cannot both go to standard output");
  }
  const CheckReport report = dry_run_of(plan_name(flags.plan), [&] { return check(read_plan(flags.plan, files)); });
  say_what_is_left_out(report.plan);
  if (json.wanted()) json.write(to_json(report));
  if (markdown.wanted()) markdown.write(to_markdown(report));
  const bool invalid = report.ranks.empty();
  if (!invalid && !json.is_stdout() && !markdown.is_stdout()) {
    say(check_text(report, {.all_quantities = flags.all}));
  }
  if (!report.problems.empty()) {
    throw UsageError(problems_text(plan_name(flags.plan), report.problems));
  }
  const bool refuted = std::any_of(report.claims.begin(), report.claims.end(),
                                   [](const JudgedClaim& judged) { return judged.verdict == ClaimVerdict::fails; });
  const bool too_large = report.fits_memory && !*report.fits_memory;
  return (refuted || too_large) && !flags.report_only ? kMismatch : kPass;
}

}  // namespace

void add_check_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<CheckFlags>();
  CLI::App* command =
      app.add_subcommand("check", "Arithmetic, memory, balance and claims of a plan; runs no mathematics");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  command->add_option("--json", flags->json, "Write the report as JSON; - for standard output")->type_name("FILE|-");
  command->add_option("--markdown", flags->markdown, "Write the report as Markdown; - for standard output")
      ->type_name("FILE|-");
  command->add_flag("--report-only", flags->report_only, "Exit 0 although claims fail or the memory does not suffice");
  command->add_flag("--all", flags->all, "Show quantities that are zero or need timing too");
  command->add_flag("--list-quantities", flags->list_quantities, "Print every quantity with its formula, and exit");
  command->footer(
      "Exit codes: 0 no claim fails, 1 a claim fails or the plan does not fit its memory, 2 usage or an invalid plan.");
  command->callback([flags, &exit_code] { exit_code = run_check(*flags); });
}

}  // namespace shardproof::tools
