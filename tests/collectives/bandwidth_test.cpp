#include "collectives/bandwidth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "collectives/default_executor.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

constexpr Operation kMeasured[] = {Operation::all_reduce, Operation::all_gather, Operation::reduce_scatter,
                                   Operation::all_to_all, Operation::broadcast};

TEST(Bandwidth, IsMeasuredOnResultsThatAreRight) {
  DefaultExecutor executor(2);
  for (const Operation operation : kMeasured) {
    for (const int ranks : {1, 3, 16}) {
      // Small, large enough to be cut into pieces, and not divisible by the ranks.
      for (const std::size_t bytes : {std::size_t{64}, std::size_t{4096}, std::size_t{300'000}}) {
        const BandwidthRow row =
            measure_bandwidth(executor, {.operation = operation, .ranks = ranks, .bytes = bytes}, 0.002);

        EXPECT_EQ(row.wrong, 0u) << to_string(operation) << " " << ranks << " " << bytes;
        EXPECT_GT(row.seconds, 0) << to_string(operation);
        EXPECT_GT(row.of_limit(), 0) << to_string(operation);
      }
    }
  }
}

TEST(Bandwidth, TakesEveryOrderOfAnAllReduce) {
  DefaultExecutor executor(2);
  for (const Algorithm algorithm : kAlgorithms) {
    const BandwidthRow row =
        measure_bandwidth(executor, {.algorithm = algorithm, .ranks = 6, .bytes = 6000, .gpus_per_node = 4}, 0.002);

    EXPECT_EQ(row.wrong, 0u) << to_string(algorithm);
    EXPECT_DOUBLE_EQ(row.busbw, row.algbw * 2 * 5 / 6);
  }
}

TEST(Bandwidth, CountsWhatMustBeReadAndWritten) {
  EXPECT_EQ(bytes_moved({.operation = Operation::all_reduce, .ranks = 16, .bytes = 100}), 3200);
  EXPECT_EQ(bytes_moved({.operation = Operation::all_gather, .ranks = 16, .bytes = 100}), 1700);
  EXPECT_EQ(bytes_moved({.operation = Operation::barrier, .ranks = 16}), 0);
}

TEST(Bandwidth, OfWhatCannotBeMeasuredIsRefused) {
  DefaultExecutor executor(1);

  EXPECT_THROW(measure_bandwidth(executor, {.ranks = 0, .bytes = 64}, 0.001), std::invalid_argument);
  EXPECT_THROW(measure_bandwidth(executor, {.operation = Operation::send, .ranks = 2, .bytes = 64}, 0.001),
               std::exception);
}

TEST(Bandwidth, TableNamesEveryCase) {
  BandwidthRow row;
  row.what = {.operation = Operation::all_to_all, .algorithm = Algorithm::hierarchical, .ranks = 8, .bytes = 4096};
  row.seconds = 2e-6;
  row.limit_seconds = 1e-6;

  const std::string table = bandwidth_table({row});

  EXPECT_THAT(table, HasSubstr("all_to_all"));
  EXPECT_THAT(table, HasSubstr("hierarchical"));
  EXPECT_THAT(table, HasSubstr("0.50"));
}

}  // namespace
}  // namespace shardproof
