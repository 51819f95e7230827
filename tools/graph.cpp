#include "tools/graph.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "emu/plan/runnable.h"
#include "emu/plan/validate.h"
#include "emu/report/dot.h"
#include "emu/report/json.h"
#include "emu/timeline/audit.h"
#include "emu/timeline/graph.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/interrupt.h"
#include "tools/memory.h"
#include "tools/output_error.h"
#include "tools/output_file.h"
#include "tools/plan_argument.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): <unistd.h> declares it for GNU only

namespace shardproof::tools {
namespace {

struct GraphFlags {
  std::string plan;
  std::string format = "json";
  std::string layers;
  std::string ranks;
  bool fold = false;
  std::string output = "-";
  std::string audit;
  std::string json;
  ScaleFlags scale;
};

/// "3" or "2-5".
std::pair<int, int> parse_range(std::string_view flag, std::string_view text) {
  const std::size_t dash = text.find('-');
  const auto number = [&](std::string_view part) {
    try {
      return static_cast<int>(parse_whole(flag, part, 0, std::numeric_limits<int>::max()));
    } catch (const UsageError&) {
      throw UsageError(fmt::format("{}: '{}' is neither a number nor a range like 0-3", flag, text));
    }
  };
  const int first = number(text.substr(0, dash));
  const int last = dash == std::string_view::npos ? first : number(text.substr(dash + 1));
  if (last >= first) return {first, last};
  throw UsageError(
      fmt::format("{}: '{}' is neither a number nor a range like 0-3: it ends before it begins", flag, text));
}

/// An empty file that is gone at the end of the scope.
ListedFile temporary_file() {
  std::error_code error;
  ListedFile file;
  const int descriptor = file.create((std::filesystem::temp_directory_path(error) / "shardproof-graph-").string());
  if (descriptor < 0) {
    throw UsageError(fmt::format("--format svg: no temporary file can be made (TMPDIR): {}", std::strerror(errno)));
  }
  close(descriptor);
  return file;
}

/// Has Graphviz lay the graph out.
std::string svg_of(const std::string& dot) {
  const ListedFile in = temporary_file();
  const ListedFile out = temporary_file();
  if (!(std::ofstream(in.path()) << dot << std::flush)) {
    throw OutputError(fmt::format("--format svg: writing '{}': {}", in.path(), std::strerror(errno)));
  }
  std::string arguments[] = {"dot", "-Tsvg", "-o", out.path(), in.path()};
  char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(),
                  arguments[3].data(), arguments[4].data(), nullptr};
  pid_t child = 0;
  if (posix_spawnp(&child, "dot", nullptr, nullptr, argv, environ) != 0) {
    throw UsageError("--format svg needs Graphviz's dot (package graphviz); --format dot writes its input");
  }
  const ListedProcess listed(child);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw UsageError(WIFEXITED(status) && WEXITSTATUS(status) == 127
                         ? "--format svg needs Graphviz's dot (package graphviz); --format dot writes its input"
                         : "--format svg: Graphviz's dot failed; try --fold, --layers or --ranks");
  }
  std::ostringstream text;
  text << std::ifstream(out.path()).rdbuf();
  return text.str();
}

int run_audit(const GraphFlags& flags, const Plan& plan, FileUses& files) {
  files.reads("--audit", flags.audit);
  OutputFile json(files, "--json", flags.json);
  const LoadedGraph loaded = load_graph(flags.audit);
  if (!loaded.graph) throw UsageError(problems_text(flags.audit, loaded.problems));
  const std::vector<Finding> findings = audit(*loaded.graph, plan);
  if (json.wanted()) json.write(to_json(findings, plan));
  if (json.is_stdout()) return findings.empty() ? kPass : kMismatch;
  say(fmt::format("{}: {} nodes, {} edges, held to {} ({} GPUs)\n", one_line(flags.audit), loaded.graph->nodes.size(),
                  loaded.graph->edges.size(), one_line(plan.name), plan.world()));
  for (const Finding& finding : findings) {
    say(fmt::format("  {}  {}\n", toned(fmt::format("{:<22}", finding.kind), Tone::bad), finding.message));
  }
  say(fmt::format("{}\n",
                  findings.empty() ? toned("no findings", Tone::good) : fmt::format("{} findings", findings.size())));
  return findings.empty() ? kPass : kMismatch;
}

/// Either a graph is drawn or one is audited: what belongs to the other would be dropped in silence.
void refuse_flags_that_do_nothing(const GraphFlags& flags) {
  if (flags.audit.empty()) {
    if (!flags.json.empty()) throw UsageError("--json belongs to --audit; a graph is written with --output");
    return;
  }
  const bool drawn = !flags.layers.empty() || !flags.ranks.empty() || flags.fold || flags.output != "-" ||
                     flags.format != "json" || flags.scale.given();
  if (drawn) {
    throw UsageError(
        "--audit draws nothing: --format, --layers, --ranks, --fold, --output, --scale, --batch and --sequence do not "
        "go with it; its findings are written with --json");
  }
}

int run_graph(const GraphFlags& flags) {
  refuse_flags_that_do_nothing(flags);
  FileUses files;
  const Plan original = read_plan(flags.plan, files);
  const std::string file = plan_name(flags.plan);
  if (const auto problems = validate(original); !problems.empty()) throw UsageError(problems_text(file, problems));
  if (!flags.audit.empty()) return run_audit(flags, original, files);
  if (const auto problems = not_executed(original); !problems.empty()) throw UsageError(problems_text(file, problems));
  say_what_is_left_out(original);

  GraphSelection selection;
  if (!flags.layers.empty())
    std::tie(selection.first_layer, selection.last_layer) = parse_range("--layers", flags.layers);
  if (!flags.ranks.empty()) std::tie(selection.first_rank, selection.last_rank) = parse_range("--ranks", flags.ranks);
  OutputFile output(files, "--output", flags.output);
  const Plan plan = scaled(original, flags.scale.options());
  const auto draw = [&] {
    require_memory("the graph", estimated_graph_bytes(plan), [](double) {
      return "it has a node for each op of each GPU: fewer GPUs or microbatches need less";
    });
    return deployment_graph(plan);
  };
  DeploymentGraph graph = selected(dry_run_of(file, draw), selection);
  if (graph.nodes.empty()) throw UsageError("--layers, --ranks: nothing of the plan lies there");
  if (flags.fold) graph = folded(graph, plan);
  output.write(flags.format == "json" ? to_json(graph) : flags.format == "dot" ? to_dot(graph) : svg_of(to_dot(graph)));
  return kPass;
}

}  // namespace

void add_graph_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<GraphFlags>();
  CLI::App* command = app.add_subcommand("graph", "The deployment graph of a plan, or an audit of a given one");
  command->add_option("PLAN", flags->plan, "Plan file; without one, the embedded tp4_ep4_pp4");
  command->add_option("--format", flags->format, "json, dot, or svg (through Graphviz)")
      ->check(CLI::IsMember({"json", "dot", "svg"}))
      ->type_name("FORMAT")
      ->capture_default_str();
  command->add_option("--layers", flags->layers, "Only these layers")->type_name("A-B");
  command->add_option("--ranks", flags->ranks, "Only these GPUs, and collectives that they are in")->type_name("A-B");
  command->add_flag("--fold", flags->fold, "Draw one of each repeated pattern");
  command->add_option("--output,-o", flags->output, "Where to write; - for standard output")->type_name("FILE|-");
  command->add_option("--audit", flags->audit, "Hold this graph to the plan and print what is wrong with it")
      ->type_name("GRAPH.json");
  command->add_option("--json", flags->json, "Write the audit as JSON; - for standard output")->type_name("FILE|-");
  flags->scale.add_to(*command);
  command->footer(
      "Exit codes: 0 written, or no findings; 1 the audited graph has findings; 2 usage or an invalid plan.");
  command->callback([flags, &exit_code] { exit_code = run_graph(*flags); });
}

}  // namespace shardproof::tools
