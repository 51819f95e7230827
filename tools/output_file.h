// A result file that is either written whole or not at all.
#pragma once

#include <string>
#include <string_view>

#include "tools/file_uses.h"
#include "tools/interrupt.h"

namespace shardproof::tools {

/// The destination of --json and its like: "-" is standard output, anything else a file. Made before the work, so that
/// a place that cannot be written is refused before anything is computed. A file is replaced at once, when its text is
/// complete, by renaming; a link stays a link, and the file keeps its mode. Into a pipe or a device is written as it
/// is.
class OutputFile {
 public:
  OutputFile() = default;
  /// Throws UsageError (usage_error.h) when the place cannot be written, nobody reads the pipe that it is, or `files`
  /// are in its way.
  OutputFile(FileUses& files, std::string_view flag, std::string path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  bool wanted() const { return !path_.empty(); }
  bool is_stdout() const { return path_ == "-"; }
  /// Throws OutputError (output_error.h).
  void write(std::string_view text);

 private:
  void open_in_place();
  void create_beside(const std::string& target);

  std::string flag_;
  std::string path_;
  std::string target_;  // what path_ leads to
  ListedFile temporary_;
  int descriptor_ = -1;
};

/// Writes what standard output still holds. Throws OutputError when anything of it could not be written.
void finish_standard_output();

}  // namespace shardproof::tools
