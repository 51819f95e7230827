// The subcommand `mutate`.
#pragma once

#include <CLI/CLI.hpp>

namespace shardproof::tools {

void add_mutate_command(CLI::App& app, int& exit_code);

}  // namespace shardproof::tools
