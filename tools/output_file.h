// A result file that is either written whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace shardproof::tools {

/// The destination of --json and its like: "-" is standard output, anything else a file. Made before the work, so that
/// a place that cannot be written is refused before anything is computed; written by renaming a finished temporary
/// file, so that an earlier result survives a failure.
class OutputFile {
 public:
  OutputFile() = default;
  /// Throws UsageError (usage_error.h) when the place cannot be written.
  OutputFile(std::string_view flag, std::string path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  bool wanted() const { return !path_.empty(); }
  bool is_stdout() const { return path_ == "-"; }
  void write(std::string_view text);

 private:
  std::string flag_;
  std::string path_;
  std::string temporary_;
};

}  // namespace shardproof::tools
