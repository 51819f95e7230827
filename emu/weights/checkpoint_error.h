// What is wrong with a checkpoint.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emu/input/problem.h"

namespace shardproof {

/// A checkpoint that cannot be used. what() is "file: field: message"; the message names the value and what would be
/// right. The field is empty when the file as a whole is meant.
class CheckpointError : public std::runtime_error {
 public:
  CheckpointError(std::string file, std::string field, const std::string& message)
      : std::runtime_error(file + ": " + (field.empty() ? "" : field + ": ") + message),
        file_(std::move(file)),
        field_(std::move(field)) {}

  const std::string& file() const { return file_; }
  const std::string& field() const { return field_; }

 private:
  std::string file_;
  std::string field_;
};

/// All that is wrong in a file, under the field of the first; there is one.
inline CheckpointError checkpoint_error(const std::string& file, const std::vector<Problem>& problems) {
  std::string message = problems.front().message;
  for (std::size_t i = 1; i < problems.size(); ++i) message += "; " + problems[i].field + ": " + problems[i].message;
  return {file, problems.front().field, message};
}

}  // namespace shardproof
