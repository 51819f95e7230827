// `shardproof judge`: somebody else's tensors held to the reference.
#pragma once

#include <CLI/CLI.hpp>

namespace shardproof::tools {

void add_judge_command(CLI::App& app, int& exit_code);

}  // namespace shardproof::tools
