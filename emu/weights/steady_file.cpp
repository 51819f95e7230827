#include "emu/weights/steady_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "emu/weights/checkpoint_error.h"

namespace shardproof {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

bool same_time(const struct timespec& a, const struct timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

}  // namespace

SteadyFile::SteadyFile(const std::filesystem::path& path) : path_(path.string()) {
  ::close(open(first_));
}

void SteadyFile::fail(const std::string& message) const {
  throw CheckpointError(path_, "", message);
}

void SteadyFile::fail_as_changed(const struct stat& now) const {
  const std::string what = now.st_dev != first_.st_dev || now.st_ino != first_.st_ino ? "another file took its place"
                           : now.st_size != first_.st_size
                               ? fmt::format("it had {} bytes and has {}", first_.st_size, now.st_size)
                               : "it was written to";
  fail(fmt::format("changed during the run: {}; nothing can be said of it, start again when it is complete", what));
}

int SteadyFile::open(struct stat& status) const {
  // Without O_NONBLOCK, opening a named pipe would wait for somebody to write to it.
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) fail(fmt::format("cannot be opened: {}", reason(errno)));
  const bool examined = ::fstat(descriptor, &status) == 0;
  const int error = errno;
  if (examined && S_ISREG(status.st_mode)) return descriptor;
  ::close(descriptor);
  fail(examined ? "is not a regular file" : fmt::format("cannot be examined: {}", reason(error)));
}

bool SteadyFile::is_as_before(const struct stat& now) const {
  return now.st_dev == first_.st_dev && now.st_ino == first_.st_ino && now.st_size == first_.st_size &&
         same_time(now.st_mtim, first_.st_mtim);
}

SteadyFile::Look::Look(const SteadyFile& file) : file_(file) {
  struct stat status {};
  descriptor_ = file.open(status);
  if (file.is_as_before(status)) return;
  ::close(descriptor_);
  file.fail_as_changed(status);
}

SteadyFile::Look::~Look() {
  ::close(descriptor_);
}

void SteadyFile::Look::read(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) file_.fail(fmt::format("cannot be read at byte {}: {}", offset, reason(errno)));
    if (count == 0) {
      finish();
      file_.fail(fmt::format("ends at byte {}, before its size says", offset));
    }
    offset += static_cast<std::uint64_t>(count);
    out = out.subspan(static_cast<std::size_t>(count));
  }
}

void SteadyFile::Look::finish() const {
  struct stat now {};
  if (::fstat(descriptor_, &now) != 0) file_.fail(fmt::format("cannot be examined: {}", reason(errno)));
  if (!file_.is_as_before(now)) file_.fail_as_changed(now);
}

}  // namespace shardproof
