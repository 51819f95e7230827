// The files that one invocation reads and writes: none may be written that is read, and none by two outputs.
#pragma once

#include <sys/stat.h>

#include <string>
#include <string_view>
#include <vector>

namespace shardproof::tools {

/// Files are told apart by device and inode, so that links of both kinds and other ways to spell a path change nothing.
/// What is no file yet is known by its folder and name. Terminals and other devices may be shared.
class FileUses {
 public:
  /// Where standard output and standard error go is in use from the start.
  FileUses();

  /// `what` names the file in messages: "the plan", "--baseline". Throws UsageError (usage_error.h).
  void reads(std::string_view what, const std::string& path);
  void writes(std::string_view what, const std::string& path);

 private:
  struct Use {
    std::string what;
    std::string path;  ///< as it was given; empty for standard output
    bool written = false;
    dev_t device = 0;
    ino_t inode = 0;   ///< of the file, or of its folder
    std::string name;  ///< empty when the file exists
  };
  void add(Use use);
  void add_stream(std::string_view what, int descriptor);
  void add_path(std::string_view what, const std::string& path, bool written);

  std::vector<Use> uses_;
};

/// Where writing to this path ends up: links followed, the last of which need not lead to a file.
std::string link_target(const std::string& path);

}  // namespace shardproof::tools
