// A file's bytes, mapped into memory for reading.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace shardproof {

/// Pages are read as they are touched, so a slice of a large file costs no more than the slice. The file must not be
/// shortened while it is mapped: the system ends a process that touches a page that is gone.
class MappedFile {
 public:
  /// Throws CheckpointError when the file is missing, not a regular file, or cannot be read.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace shardproof
