// A result that could not be written: the disk is full, say. Reported in one line, exit code 70.
#pragma once

#include <stdexcept>

namespace shardproof::tools {

class OutputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace shardproof::tools
