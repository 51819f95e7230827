// What has to happen however the process ends: by a signal, without memory, or by an error that nobody caught.
#pragma once

#include <string>

namespace shardproof::tools {

/// From now on SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ and SIGABRT remove what is listed below before they end the
/// process as they always do (exit code 128 + n in a shell); signals that were ignored stay so. Where memory ends, or
/// an error is caught by nobody, the same is done, with a message and exit code 70.
void guard_the_end_of_the_process();

/// A file that no end of the process leaves behind, while this lives.
class ListedFile {
 public:
  ListedFile() = default;
  ListedFile(ListedFile&& other) noexcept;
  ListedFile& operator=(ListedFile&& other) noexcept;
  ~ListedFile() { remove(); }

  /// Makes an empty file of a name of its own beside nothing else: `prefix` and six letters. Its descriptor is open for
  /// writing, and for the caller to close. Returns -1, with errno set, when it cannot be made.
  int create(const std::string& prefix);
  /// Takes the file away.
  void remove();
  /// It stays, or bears another name now.
  void keep();

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int slot_ = -1;
};

/// A process that ends with this one, while this lives.
class ListedProcess {
 public:
  explicit ListedProcess(int id);
  ListedProcess(const ListedProcess&) = delete;
  ListedProcess& operator=(const ListedProcess&) = delete;
  ~ListedProcess();
};

/// Whether the last line of the terminal is one of progress, to be wiped away.
void progress_is_shown(bool shown);

}  // namespace shardproof::tools
