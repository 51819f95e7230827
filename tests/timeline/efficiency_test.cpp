#include "emu/timeline/efficiency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace shardproof {
namespace {

using ::testing::HasSubstr;

TEST(Efficiency, InterpolatesTheEffectiveSize) {
  const Efficiency table({{1e6, 0.25}, {1e8, 0.8}});

  EXPECT_DOUBLE_EQ(table.effective(1e6), 4e6);
  EXPECT_DOUBLE_EQ(table.effective(1e8), 1.25e8);
  EXPECT_DOUBLE_EQ(table.effective(50.5e6), (4e6 + 1.25e8) / 2);
  EXPECT_DOUBLE_EQ(table.effective(1e5), 4e5);
  EXPECT_DOUBLE_EQ(table.effective(1e9), 1.25e9);
  EXPECT_EQ(table.effective(0), 0);
  EXPECT_DOUBLE_EQ(table.share(1e8), 0.8);
}

TEST(Efficiency, NeverTakesLessTimeForMore) {
  const Efficiency table({{1e3, 0.05}, {2e3, 0.1}, {1e5, 0.6}, {1e6, 0.61}, {1e9, 0.95}});
  const Efficiency tables[] = {table, table.scaled(1.4), table.scaled(0.3), Efficiency(), Efficiency::flat(0.6)};

  for (const Efficiency& one : tables) {
    double before = 0;
    for (double size = 1; size < 1e11; size *= 1.07) {
      EXPECT_GE(one.effective(size), before) << size;
      EXPECT_GE(one.effective(size), size) << size;
      before = one.effective(size);
    }
  }
}

TEST(Efficiency, RefusesWhatIsNoTable) {
  EXPECT_THAT(Efficiency::problem_of({}), HasSubstr("at least one"));
  EXPECT_THAT(Efficiency::problem_of({{0, 0.5}}), HasSubstr("a size of 0"));
  EXPECT_THAT(Efficiency::problem_of({{1, 0}}), HasSubstr("a share of 0"));
  EXPECT_THAT(Efficiency::problem_of({{1, 1.5}}), HasSubstr("a share of 1.5"));
  EXPECT_THAT(Efficiency::problem_of({{1, NAN}}), HasSubstr("a share of nan"));
  EXPECT_THAT(Efficiency::problem_of({{2, 0.5}, {1, 0.6}}), HasSubstr("ascending"));
  EXPECT_THAT(Efficiency::problem_of({{1, 0.1}, {2, 0.9}}), HasSubstr("less time"));
  EXPECT_EQ(Efficiency::problem_of({{1, 0.1}, {2, 0.2}}), "");
  EXPECT_THROW(Efficiency({{1, 2}}), std::invalid_argument);
}

}  // namespace
}  // namespace shardproof
