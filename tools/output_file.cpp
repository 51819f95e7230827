#include "tools/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

/// A device or a pipe is written in place: there is nothing to keep, and renaming over it would replace it.
bool is_special(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
}

void write_all(int descriptor, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw std::runtime_error(fmt::format("writing {}: {}", path, std::strerror(errno)));
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

OutputFile::OutputFile(std::string_view flag, std::string path) : flag_(flag), path_(std::move(path)) {
  if (path_.empty() || path_ == "-") return;
  struct stat status {};
  if (stat(path_.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    throw UsageError(fmt::format("{}: '{}' is a directory; name a file, or - for standard output", flag_, path_));
  }
  temporary_ = is_special(path_) ? path_ : fmt::format("{}.{}.tmp", path_, getpid());
  const int descriptor = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) {
    const std::string reason = std::strerror(errno);
    temporary_.clear();
    throw UsageError(fmt::format("{}: cannot write '{}': {}", flag_, path_, reason));
  }
  close(descriptor);
}

OutputFile::~OutputFile() {
  if (!temporary_.empty() && temporary_ != path_) unlink(temporary_.c_str());
}

void OutputFile::write(std::string_view text) {
  if (path_.empty()) return;
  if (is_stdout()) {
    write_all(STDOUT_FILENO, text, "standard output");
    return;
  }
  const int descriptor = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) throw std::runtime_error(fmt::format("writing {}: {}", path_, std::strerror(errno)));
  try {
    write_all(descriptor, text, path_);
  } catch (...) {
    close(descriptor);
    throw;
  }
  if (close(descriptor) != 0) throw std::runtime_error(fmt::format("writing {}: {}", path_, std::strerror(errno)));
  if (temporary_ == path_) return;
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    throw std::runtime_error(fmt::format("writing {}: {}", path_, std::strerror(errno)));
  }
  temporary_.clear();
}

}  // namespace shardproof::tools
