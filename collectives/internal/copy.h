// Copying into buffers that are too large for the caches to be worth filling.
#pragma once

#include <cstddef>

namespace shardproof::internal {

/// memcpy, or nothing when both are the same place. `stream` writes past the caches; finish_streaming() must follow on
/// the same thread before others read.
void copy_bytes(void* to, const void* from, std::size_t bytes, bool stream);
void finish_streaming();

}  // namespace shardproof::internal
