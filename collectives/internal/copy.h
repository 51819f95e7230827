// Copying within the caches, and into buffers that are too large for them to be worth filling.
#pragma once

#include <cstddef>

namespace shardproof::internal {

/// How to move data, by how much of it there is.
enum class CopyMode : unsigned char {
  cached,   ///< all of it fits the last-level cache: nothing special
  ahead,    ///< it does not: what is needed next is worth fetching ahead
  streamed  ///< not even what is written fits: fetch ahead, and write past the caches. finish_streaming() must follow
            ///< on the same thread before others read.
};

CopyMode copy_mode(std::size_t bytes_read, std::size_t bytes_written);

/// Asks for memory that will be read, or written, soon.
void fetch_to_read(const void* from, std::size_t bytes);
void fetch_to_write(void* to, std::size_t bytes);

/// Nothing when both are the same place.
void copy_bytes(void* to, const void* from, std::size_t bytes, CopyMode mode);
void finish_streaming();

}  // namespace shardproof::internal
