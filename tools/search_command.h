// shardproof search MODEL
#pragma once

#include <CLI/CLI.hpp>

namespace shardproof::tools {

/// Adds the subcommand; when it is chosen, it runs during the parse and sets exit_code.
void add_search_command(CLI::App& app, int& exit_code);

}  // namespace shardproof::tools
