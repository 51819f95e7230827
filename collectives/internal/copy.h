// Copying within the caches, and into buffers that are too large for them to be worth filling.
#pragma once

#include <cstddef>

namespace shardproof::internal {

enum class CopyMode : unsigned char {
  cached,   ///< memcpy
  streamed  ///< written past the caches; finish_streaming() must follow on the same thread before others read
};

/// How to copy when so many bytes are written in all: streamed when they would not fit the last-level cache.
CopyMode copy_mode(std::size_t bytes_written);

/// Nothing when both are the same place.
void copy_bytes(void* to, const void* from, std::size_t bytes, CopyMode mode);
void finish_streaming();

}  // namespace shardproof::internal
