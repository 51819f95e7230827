#include "tools/collectives_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "collectives/bandwidth.h"
#include "collectives/make_executor.h"
#include "tools/arguments.h"
#include "tools/exit_code.h"
#include "tools/memory.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

// Larger sizes say nothing new, and take long.
constexpr double kMostBytes = 4.0 * (1 << 30);

/// Of all ranks' buffers together, of the copies that they are held to, and of the sum; beside it the process itself.
double bytes_needed(const BandwidthCase& what) {
  constexpr double kProcess = 16e6;
  return 2 * bytes_moved(what) + static_cast<double>(what.bytes) + kProcess;
}

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
  const AvailableMemory available = available_memory();
  for (const std::size_t bytes : sizes) {
    what.bytes = bytes;
    if (const double needed = bytes_needed(what); needed > std::min(kMostBytes, available.bytes)) {
      const std::string most = available.bytes < kMostBytes ? fmt::format("the {} that are available {}",
                                                                          human_bytes(available.bytes), available.of)
                                                            : human_bytes(kMostBytes);
      const std::string text = fmt::format("sizes from {} bytes on are left out: {} ranks would need {}, more than {}",
                                           bytes, what.ranks, human_bytes(needed), most);
      if (rows.empty()) throw UsageError("--ranks: " + text);
      complain(text);
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
