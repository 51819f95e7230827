#include "tools/collectives_command.h"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "collectives/bandwidth.h"
#include "collectives/make_executor.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

// Of all ranks' buffers together; the copies that they are held to need as much again.
constexpr double kMostBytes = 2.0 * (1 << 30);

struct CollectivesFlags {
  std::string operation = "all_reduce";
  std::string algorithm = "rank_order";
  int ranks = 16;
  int gpus_per_node = 8;
  int threads = 0;
};

Operation operation_named(const std::string& name) {
  for (const Operation operation : {Operation::all_reduce, Operation::all_gather, Operation::reduce_scatter,
                                    Operation::all_to_all, Operation::broadcast}) {
    if (to_string(operation) == name) return operation;
  }
  return Operation::barrier;
}

int run_collectives(const CollectivesFlags& flags) {
  BandwidthCase what{.operation = operation_named(flags.operation),
                     .algorithm = parse_algorithm(flags.algorithm).value(),
                     .ranks = flags.ranks,
                     .gpus_per_node = flags.gpus_per_node};
  const std::unique_ptr<Executor> executor = make_executor(flags.threads);
  std::vector<BandwidthRow> rows;
  const std::vector<std::size_t> sizes =
      what.operation == Operation::barrier ? std::vector<std::size_t>{0} : bandwidth_sizes();
  for (const std::size_t bytes : sizes) {
    what.bytes = bytes;
    if (bytes_moved(what) > kMostBytes) {
      complain(
          fmt::format("sizes from {} bytes on are left out: {} ranks would need more than {} GiB for their buffers",
                      bytes, what.ranks, kMostBytes / (1 << 30)));
      break;
    }
    rows.push_back(measure_bandwidth(*executor, what));
  }
  say(bandwidth_table(rows));
  for (const BandwidthRow& row : rows) {
    if (row.wrong > 0) return kMismatch;
  }
  return kPass;
}

}  // namespace

void add_collectives_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<CollectivesFlags>();
  CLI::App* command =
      app.add_subcommand("collectives", "Time a collective between virtual ranks, checked, as nccl-tests does");
  command->add_option("--operation", flags->operation, "What to time")
      ->check(CLI::IsMember({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"}))
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--algorithm", flags->algorithm, "In which algorithm's order")
      ->check(CLI::IsMember({"rank_order", "ring", "tree", "recursive_doubling", "hierarchical"}))
      ->type_name("NAME")
      ->capture_default_str();
  add_whole(*command, "--ranks", flags->ranks, {1, 1024}, "How many ranks");
  add_whole(*command, "--gpus-per-node", flags->gpus_per_node, {1, 1024}, "Ranks of a node, for hierarchical");
  add_threads(*command, flags->threads);
  command->callback([flags, &exit_code] { exit_code = run_collectives(*flags); });
}

}  // namespace shardproof::tools
