#include "tools/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <new>
#include <sstream>

#include "tools/arguments.h"
#include "tools/check.h"
#include "tools/collectives_command.h"
#include "tools/exit_code.h"
#include "tools/graph.h"
#include "tools/judge_command.h"
#include "tools/mutate_command.h"
#include "tools/ops_command.h"
#include "tools/output_error.h"
#include "tools/output_file.h"
#include "tools/search_command.h"
#include "tools/terminal.h"
#include "tools/time_command.h"
#include "tools/usage_error.h"
#include "tools/verify_command.h"
#include "tools/version.h"

namespace shardproof::tools {
namespace {

constexpr const char* kFooter = R"(Examples:
  shardproof verify                                the embedded default plan: 16 ranks, TP4 x EP4 x PP4
  shardproof verify plans/ep64_tp2.json            128 ranks, scaled to a size that runs in seconds
  shardproof verify PLAN --format fp16 --json -    the rounding verdict in fp16, as JSON on standard output
  shardproof verify PLAN --scale full --batch 4 --sequence 128
  shardproof check plans/ep4_tp2_pp2_sp.json       arithmetic, memory, balance and claims of a plan
  shardproof time PLAN --preset h100               how long its steps take, by a virtual clock
  shardproof search MODEL --gpus 64 --preset h100  the best plans for so many GPUs
  shardproof judge DUMP PLAN --checkpoint DIR      tensors of somebody else's run, held to the reference
  shardproof ops PLAN --rank 3                     the ops of one rank at full scale, timed here

Exit codes: 0 pass, 1 mismatch or refuted claim, 2 usage or invalid plan, 3 deadlock or collective mismatch,
4 inconclusive, 70 internal error, no memory or no room on the disk, 128 + n ended by signal n.)";

/// Help and version are successes and go to standard output; everything else is a usage error.
int answer(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream out;
  std::ostringstream errors;
  if (app.exit(error, out, errors) == 0) {
    say(out.str());
    return kPass;
  }
  throw UsageError(fmt::format("{}; --help lists what there is", error.what()));
}

int run(int argc, const char* const* argv) {
  CLI::App app{"Proves parallel deployment plans for Mixture-of-Experts transformers on one CPU machine.",
               "shardproof"};
  app.set_version_flag("--version", fmt::format("shardproof {}", kVersion));
  app.footer(kFooter);
  app.require_subcommand(1);
  int exit_code = 0;
  add_verify_command(app, exit_code);
  add_check_command(app, exit_code);
  add_graph_command(app, exit_code);
  add_time_command(app, exit_code);
  add_search_command(app, exit_code);
  add_mutate_command(app, exit_code);
  add_judge_command(app, exit_code);
  add_ops_command(app, exit_code);
  add_collectives_command(app, exit_code);
  refuse_empty_values(app);
  refuse_empty_values(argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return answer(app, error);
  }
  return exit_code;
}

}  // namespace

int run_command(int argc, const char* const* argv) {
  try {
    const int exit_code = run(argc, argv);
    finish_standard_output();
    return exit_code;
  } catch (const UsageError& error) {
    complain(error.what());
    return kUsage;
  } catch (const OutputError& error) {
    complain(error.what());
  } catch (const std::bad_alloc&) {
    complain("out of memory; a larger --scale divisor, fewer or shorter sequences, or fewer --threads need less");
  } catch (const std::exception& error) {
    complain(fmt::format("internal error: {}", error.what()));
  }
  return kInternal;
}

}  // namespace shardproof::tools
