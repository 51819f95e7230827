#include "ops/threads.h"

#include "ops/attention.h"
#include "ops/expert.h"
#include "ops/internal/parallel.h"
#include "ops/linear.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::random_matrix;

TEST(ThreadScope, NestsAndEnds) {
  EXPECT_EQ(threads(), 1);
  {
    const ThreadScope outer(4);
    EXPECT_EQ(threads(), 4);
    {
      const ThreadScope inner(0);
      EXPECT_EQ(threads(), 1);
    }
    EXPECT_EQ(threads(), 4);
  }
  EXPECT_EQ(threads(), 1);
}

TEST(ParallelFor, CoversEveryIndexOnce) {
  const ThreadScope scope(3);
  for (const Index count : {0, 1, 7, 8, 9, 100, 1000}) {
    std::vector<int> visits(static_cast<std::size_t>(count));
    parallel_for(count, 8, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
    });
    for (const int visit : visits) ASSERT_EQ(visit, 1);
  }
}

TEST(ThreadScope, ChangesNoBit) {
  const Matrix<float> x = random_matrix<float>(70, 192, 1, 1), w = random_matrix<float>(300, 192, 1, 2);
  const Matrix<float> down = random_matrix<float>(192, 300, 1, 3);
  const std::vector<std::int64_t> offsets{0, 20, 20, 70};
  const auto run = [&](int threads) {
    const ThreadScope scope(threads);
    Matrix<float> all(70, 300 + 192 + 192);
    linear<float>(x, w, all.view().col_range(0, 300));
    expert<float>(x, w, w, down, Format::bf16, all.view().col_range(300, 192));
    attention<float>(x, x, x, offsets, 32, Format::fp32, all.view().col_range(492, 192));
    return all;
  };
  const Matrix<float> one = run(1);
  for (const int threads : {2, 3, 8}) EXPECT_TRUE(oracle::same_bits<float>(one, run(threads)));
}

}  // namespace
}  // namespace shardproof::ops
