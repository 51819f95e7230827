// What an idle rank costs: its frames, its slot in the group, its state in the world. Counted at the allocator.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/collectives/helpers.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<std::int64_t> live_bytes{0};
std::atomic<std::int64_t> peak_bytes{0};

void* count(void* pointer, std::size_t size) {
  if (pointer == nullptr) throw std::bad_alloc();
  const std::int64_t now = live_bytes += static_cast<std::int64_t>(size);
  std::int64_t peak = peak_bytes;
  while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
  return pointer;
}
}  // namespace

// Sizes are rounded up to what the sized deletes give back; arrays and unsized deletes go uncounted, which errs
// upwards.
void* operator new(std::size_t size) {
  return count(std::malloc(size), size);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  return count(std::aligned_alloc(align, (size + align - 1) / align * align), size);
}
void operator delete(void* pointer) noexcept {
  std::free(pointer);
}
void operator delete(void* pointer, std::size_t size) noexcept {
  live_bytes -= static_cast<std::int64_t>(size);
  std::free(pointer);
}
void operator delete(void* pointer, std::align_val_t) noexcept {
  std::free(pointer);
}
void operator delete(void* pointer, std::size_t size, std::align_val_t) noexcept {
  live_bytes -= static_cast<std::int64_t>(size);
  std::free(pointer);
}

namespace shardproof {
namespace {

TEST(Memory, OfAnIdleRankIsBelowFourKibibytes) {
  constexpr int kRanks = 4096;
  const std::int64_t before = live_bytes;
  peak_bytes = before;

  {
    testing::OneGroup group(kRanks);
    // A rank inside a nested task, waiting in a collective with all its options.
    const auto layer = [](Communicator comm) -> Task<> {
      co_await comm.all_reduce(std::span<float>(), {.algorithm = Algorithm::ring});
    };
    group.run([&layer](Communicator comm) -> Task<> {
      co_await comm.barrier();
      co_await layer(comm);
    });
  }

  const std::int64_t per_rank = (peak_bytes - before) / kRanks;
  RecordProperty("bytes_per_rank", static_cast<int>(per_rank));
  EXPECT_GT(per_rank, 64);
  EXPECT_LT(per_rank, 4096);
}

}  // namespace
}  // namespace shardproof

#endif
