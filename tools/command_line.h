// The whole command: arguments in, exit code out.
#pragma once

namespace shardproof::tools {

/// Runs the command of these words; results go to standard output, diagnostics to standard error. Throws nothing.
int run_command(int argc, const char* const* argv);

}  // namespace shardproof::tools
