#include "collectives/internal/copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace shardproof::internal {

namespace {

// The largest cache of the first CPU, in bytes. Where the system does not tell, a size that many have.
std::size_t last_level_cache() {
  std::size_t largest = 0;
  for (const char level : {'2', '3', '4'}) {
    std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + level + "/size");
    std::size_t kibibytes = 0;
    if (char unit = 0; file >> kibibytes >> unit && unit == 'K') largest = std::max(largest, kibibytes * 1024);
  }
  return largest != 0 ? largest : std::size_t{32} << 20;
}

}  // namespace

CopyMode copy_mode(std::size_t bytes_read, std::size_t bytes_written) {
  static const std::size_t cache = last_level_cache();
  if (bytes_written > cache) return CopyMode::streamed;
  return bytes_read + bytes_written > cache ? CopyMode::ahead : CopyMode::cached;
}

// Into the second-level cache: a block of all ranks together may be more than the first holds.
void fetch_to_read(const void* from, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}
void fetch_to_write(void* to, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(to) + at, 1, 2);
}

#if defined(__SSE2__)

namespace {

#if defined(__AVX__)
using Vector = __m256i;
Vector load(const char* from) {
  return _mm256_loadu_si256(reinterpret_cast<const Vector*>(from));
}
void stream_one(char* to, Vector value) {
  _mm256_stream_si256(reinterpret_cast<Vector*>(to), value);
}
#else
using Vector = __m128i;
Vector load(const char* from) {
  return _mm_loadu_si128(reinterpret_cast<const Vector*>(from));
}
void stream_one(char* to, Vector value) {
  _mm_stream_si128(reinterpret_cast<Vector*>(to), value);
}
#endif

// Whole cache lines go past the caches; what is left at both ends is copied as usual.
void stream_bytes(char* to, const char* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  if (bytes < head + kLine) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    for (std::size_t i = 0; i < kLine; i += sizeof(Vector)) stream_one(to + at + i, load(from + at + i));
  }
  std::memcpy(to + at, from + at, bytes - at);
}

}  // namespace

void copy_bytes(void* to, const void* from, std::size_t bytes, CopyMode mode) {
  if (bytes == 0 || to == from) return;
  if (mode == CopyMode::streamed) {
    stream_bytes(static_cast<char*>(to), static_cast<const char*>(from), bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

void finish_streaming() {
  _mm_sfence();
}

#else

void copy_bytes(void* to, const void* from, std::size_t bytes, CopyMode) {
  if (bytes != 0 && to != from) std::memcpy(to, from, bytes);
}

void finish_streaming() {}

#endif

}  // namespace shardproof::internal
