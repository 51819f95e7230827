// Bad input from the command line: reported in one line, exit code 2.
#pragma once

#include <stdexcept>

namespace shardproof::tools {

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace shardproof::tools
