// shardproof: the one command.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "tools/check.h"
#include "tools/collectives_command.h"
#include "tools/exit_code.h"
#include "tools/graph.h"
#include "tools/mutate_command.h"
#include "tools/usage_error.h"
#include "tools/verify_command.h"
#include "tools/version.h"

namespace {

using shardproof::tools::kInternal;
using shardproof::tools::kUsage;

constexpr const char* kFooter = R"(Examples:
  shardproof verify                                the embedded default plan: 16 ranks, TP4 x EP4 x PP4
  shardproof verify plans/ep64_tp2.json            128 ranks, scaled to a size that runs in seconds
  shardproof verify PLAN --format fp16 --json -    the rounding verdict in fp16, as JSON on standard output
  shardproof verify PLAN --scale full --batch 4 --sequence 128
  shardproof check plans/ep4_tp2_pp2_sp.json       arithmetic, memory, balance and claims of a plan

Exit codes: 0 pass, 1 mismatch or refuted claim, 2 usage or invalid plan, 3 deadlock or collective mismatch,
4 inconclusive, 70 internal error.)";

int run(int argc, char** argv) {
  CLI::App app{"Proves parallel deployment plans for Mixture-of-Experts transformers on one CPU machine.",
               "shardproof"};
  app.set_version_flag("--version", fmt::format("shardproof {}", shardproof::tools::kVersion));
  app.footer(kFooter);
  app.require_subcommand(1);
  int exit_code = 0;
  shardproof::tools::add_verify_command(app, exit_code);
  shardproof::tools::add_check_command(app, exit_code);
  shardproof::tools::add_graph_command(app, exit_code);
  shardproof::tools::add_mutate_command(app, exit_code);
  shardproof::tools::add_collectives_command(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are successes; everything else is a usage error.
    return app.exit(error) == 0 ? 0 : kUsage;
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const shardproof::tools::UsageError& error) {
    fmt::print(stderr, "shardproof: {}\n", error.what());
    return kUsage;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "shardproof: out of memory; a larger --scale divisor makes the run smaller\n");
    return kInternal;
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardproof: internal error: {}\n", error.what());
    return kInternal;
  }
}
