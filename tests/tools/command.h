// Runs the shardproof command as a user does.
#pragma once

#include <string>

namespace shardproof::testing {

struct CommandResult {
  int exit_code = -1;
  std::string out;  ///< standard output
  std::string err;  ///< standard error
};

/// Runs `shardproof <arguments>` in a shell, with standard input closed.
CommandResult shardproof(const std::string& arguments);

/// The same in this folder, behind words of the shell that come first: "ulimit -v 100000;".
CommandResult shardproof_in(const std::string& folder, const std::string& arguments, const std::string& before = "");

/// A file of this text in the test's temporary folder; returns its path.
std::string temporary_file(const std::string& name, const std::string& text);

}  // namespace shardproof::testing
