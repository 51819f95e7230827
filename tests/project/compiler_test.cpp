// What the compiler is trusted with and has got wrong.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace shardproof {
namespace {

/// GCC 12 with AVX-512 stores such constants with their first half twice (tools/cmake/ShardproofArch.cmake).
template <class T>
void expect_second_half_zero(const std::vector<T>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], T(i < values.size() / 2 ? 7 : 0)) << i;
}

TEST(Compiler, StoresConstantsOfTwoHalves) {
  const std::vector<std::int64_t> counts{7, 7, 0, 0};
  const std::vector<std::int32_t> ids{7, 7, 7, 7, 0, 0, 0, 0};
  const std::vector<float> floats{7, 7, 7, 7, 0, 0, 0, 0};
  const std::vector<double> doubles{7, 7, 0, 0};

  expect_second_half_zero(counts);
  expect_second_half_zero(ids);
  expect_second_half_zero(floats);
  expect_second_half_zero(doubles);
}

}  // namespace
}  // namespace shardproof
