// A file that is read in pieces over a long time, and has to stay as it was.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace shardproof {

/// Nothing is mapped: a file that is shortened is an error, where a page that is gone would end the process. No
/// descriptor is kept between reads, since a checkpoint has more files than a process may have descriptors.
class SteadyFile {
 public:
  /// Throws CheckpointError when the file is missing, not a regular file, or cannot be read.
  explicit SteadyFile(const std::filesystem::path& path);

  const std::string& name() const { return path_; }
  std::uint64_t size() const { return static_cast<std::uint64_t>(first_.st_size); }

  /// One look into the file. Safe to make several at a time.
  class Look {
   public:
    /// Throws CheckpointError when the file is not the one that was opened first.
    explicit Look(const SteadyFile& file);
    Look(const Look&) = delete;
    Look& operator=(const Look&) = delete;
    ~Look();

    /// Fills `out` with the bytes from `offset` on. Throws CheckpointError when they are not there any more.
    void read(std::uint64_t offset, std::span<std::byte> out) const;
    /// What was read is what the file was when it was opened first. Throws CheckpointError when it is not.
    void finish() const;

   private:
    const SteadyFile& file_;
    int descriptor_ = -1;
  };

 private:
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail_as_changed(const struct stat& now) const;
  /// Opens it anew; the descriptor is the caller's.
  int open(struct stat& status) const;
  bool is_as_before(const struct stat& now) const;

  std::string path_;
  struct stat first_ {};
};

}  // namespace shardproof
