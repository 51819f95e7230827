#include "tools/file_uses.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

namespace fs = std::filesystem;

bool can_be_shared(const struct stat& status) {
  return S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode);
}

}  // namespace

std::string link_target(const std::string& path) {
  constexpr int kMostLinks = 40;  // as the kernel allows
  fs::path at = path;
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(fs::symlink_status(at, error)); ++i) {
    const fs::path next = fs::read_symlink(at, error);
    if (error) break;
    // What /proc/self/fd holds for a pipe is no path.
    if (next.is_relative() && !fs::exists(at.parent_path() / next, error) && fs::exists(at, error)) break;
    at = at.parent_path() / next;
  }
  return at.string();
}

FileUses::FileUses() {
  add_stream("standard output", STDOUT_FILENO);
  add_stream("standard error", STDERR_FILENO);
}

void FileUses::reads(std::string_view what, const std::string& path) {
  add_path(what, path, false);
}

void FileUses::writes(std::string_view what, const std::string& path) {
  add_path(what, path, true);
}

void FileUses::add_stream(std::string_view what, int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || can_be_shared(status)) return;
  // Both may go to one file, as in 2>&1.
  uses_.push_back({std::string(what), "", true, status.st_dev, status.st_ino, ""});
}

void FileUses::add_path(std::string_view what, const std::string& path, bool written) {
  struct stat status {};
  Use use{.what = std::string(what), .path = path, .written = written, .name = ""};
  if (stat(path.c_str(), &status) != 0) {
    const fs::path target = link_target(path);
    const std::string folder = target.has_parent_path() ? target.parent_path().string() : ".";
    if (stat(folder.c_str(), &status) != 0) return;  // whoever opens it says why not
    use.name = target.filename().string();
  } else if (can_be_shared(status)) {
    return;
  }
  use.device = status.st_dev;
  use.inode = status.st_ino;
  add(std::move(use));
}

void FileUses::add(Use use) {
  for (const Use& other : uses_) {
    if (!use.written && !other.written) continue;
    if (use.device != other.device || use.inode != other.inode || use.name != other.name) continue;
    const Use& output = use.written ? use : other;
    const Use& with = use.written ? other : use;
    const std::string& path = output.path.empty() ? with.path : output.path;
    if (with.written) {
      throw UsageError(
          fmt::format("{}: '{}' is where {} goes too; each needs a file of its own", use.what, path, other.what));
    }
    throw UsageError(fmt::format("{}: '{}' is {}{}, which it would replace; name another file", output.what, path,
                                 with.what, with.path == path ? "" : fmt::format(" ('{}')", with.path)));
  }
  uses_.push_back(std::move(use));
}

}  // namespace shardproof::tools
