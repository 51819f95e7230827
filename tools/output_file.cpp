#include "tools/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "tools/output_error.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

[[noreturn]] void fail(const std::string& what, int error) {
  throw OutputError(fmt::format("{}: {}", what, std::strerror(error)));
}

void write_all(int descriptor, std::string_view text, const std::string& what) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(what, errno);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// Opening a pipe for writing would wait for somebody who reads it, for ever: who starts both sides at once gets a
/// second.
int open_for_writing(const std::string& path) {
  constexpr int kTries = 20;
  for (int i = 0;; ++i) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor >= 0 || errno != ENXIO || i == kTries) return descriptor;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

/// The mode that a new file would get.
mode_t mode_of_new_files() {
  const mode_t mask = umask(0);
  umask(mask);
  return 0666 & ~mask;
}

}  // namespace

OutputFile::OutputFile(FileUses& files, std::string_view flag, std::string path) : flag_(flag), path_(std::move(path)) {
  if (!wanted() || is_stdout()) return;
  struct stat status {};
  const bool exists = stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) {
    throw UsageError(fmt::format("{}: '{}' is a directory; name a file, or - for standard output", flag_, path_));
  }
  files.writes(flag_, path_);
  target_ = link_target(path_);
  if (exists && !S_ISREG(status.st_mode)) {
    open_in_place();
  } else {
    create_beside(target_);
    // As root, or where the folder is a user's own, a file that must not be written could still be replaced.
    if (exists && access(path_.c_str(), W_OK) != 0) {
      throw UsageError(fmt::format("{}: cannot write '{}': {}", flag_, path_, std::strerror(errno)));
    }
    // Whoever may not give a file away keeps it as his own.
    if (exists && fchown(descriptor_, status.st_uid, status.st_gid) != 0) errno = 0;
    fchmod(descriptor_, exists ? status.st_mode & 07777 : mode_of_new_files());
  }
}

void OutputFile::open_in_place() {
  descriptor_ = open_for_writing(path_);
  if (descriptor_ < 0) {
    throw UsageError(errno == ENXIO ? fmt::format("{}: nobody reads the pipe '{}'", flag_, path_)
                                    : fmt::format("{}: cannot write '{}': {}", flag_, path_, std::strerror(errno)));
  }
  fcntl(descriptor_, F_SETFL, fcntl(descriptor_, F_GETFL) & ~O_NONBLOCK);
}

void OutputFile::create_beside(const std::string& target) {
  const std::filesystem::path folder = std::filesystem::path(target).parent_path();
  descriptor_ = temporary_.create((folder / ".shardproof-").string());
  if (descriptor_ < 0) {
    throw UsageError(fmt::format("{}: cannot write '{}': {}", flag_, path_, std::strerror(errno)));
  }
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

void OutputFile::write(std::string_view text) {
  if (!wanted()) return;
  if (is_stdout()) {
    finish_standard_output();
    write_all(STDOUT_FILENO, text, "standard output");
    return;
  }
  const std::string what = fmt::format("{}: writing '{}'", flag_, path_);
  write_all(descriptor_, text, what);
  if (close(std::exchange(descriptor_, -1)) != 0) fail(what, errno);
  if (temporary_.path().empty()) return;
  if (std::rename(temporary_.path().c_str(), target_.c_str()) != 0) fail(what, errno);
  temporary_.keep();
}

void finish_standard_output() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (!flushed || std::ferror(stdout) != 0) fail("standard output", errno != 0 ? errno : EIO);
}

}  // namespace shardproof::tools
