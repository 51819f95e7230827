#include "ops/linear.h"

#include <Eigen/Core>
#include <cmath>
#include <limits>

#include "ops/internal/gemm.h"
#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

struct Shape {
  Index m, n, k;
};

const Shape kShapes[] = {{1, 1, 1},     {1, 7, 3},      {2, 5, 8},      {3, 4, 16},     {4, 33, 17},  {5, 16, 64},
                         {7, 9, 31},    {8, 8, 100},    {13, 21, 129},  {16, 64, 64},   {17, 3, 511}, {31, 37, 513},
                         {1, 50, 1030}, {6, 129, 1024}, {64, 65, 1025}, {70, 40, 2051}, {33, 1, 300}, {130, 140, 65}};

template <class T>
class Linear : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Linear, Scalars);

TYPED_TEST(Linear, AgreesWithEigenToTheRoundingOfItsSums) {
  using T = TypeParam;
  using EigenMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  for (const Shape& shape : kShapes) {
    const Matrix<T> x = random_matrix<T>(shape.m, shape.k, 2, 1), w = random_matrix<T>(shape.n, shape.k, 2, 2);
    Matrix<T> y(shape.m, shape.n);

    linear<T>(x, w, y);

    const Eigen::Map<const EigenMatrix> a(x.data(), shape.m, shape.k), b(w.data(), shape.n, shape.k);
    const EigenMatrix expected = a * b.transpose();
    // Either sum is within k u of the exact one, relative to the sum of the magnitudes.
    const EigenMatrix magnitudes = a.cwiseAbs() * b.cwiseAbs().transpose();
    const T bound = static_cast<T>(2 * (shape.k + 1)) * std::numeric_limits<T>::epsilon();
    for (Index i = 0; i < shape.m; ++i) {
      for (Index j = 0; j < shape.n; ++j) ASSERT_LE(std::abs(y(i, j) - expected(i, j)), bound * magnitudes(i, j));
    }
  }
}

TYPED_TEST(Linear, EqualsTheOracleWhenEverySumIsExact) {
  // Small integers: every partial sum is exact in float too, so no order can matter.
  using T = TypeParam;
  for (const Shape& shape : kShapes) {
    Matrix<T> x(shape.m, shape.k), w(shape.n, shape.k), y(shape.m, shape.n);
    oracle::Generator generator(static_cast<std::uint64_t>(shape.m * 1000 + shape.k));
    for (T& value : x.span()) value = static_cast<T>(generator.below(15) - 7);
    for (T& value : w.span()) value = static_cast<T>(generator.below(15) - 7);

    linear<T>(x, w, y);

    const Matrix<double> expected = oracle::linear(converted<double, T>(x.view()), converted<double, T>(w.view()));
    oracle::expect_equal<double, T>(expected, y);
  }
}

TYPED_TEST(Linear, ErrsWithinTheBoundOfItsSum) {
  using T = TypeParam;
  for (const Shape& shape : kShapes) {
    const Matrix<T> x = random_matrix<T>(shape.m, shape.k, 2, 1), w = random_matrix<T>(shape.n, shape.k, 1, 2);
    Matrix<T> y(shape.m, shape.n);

    linear<T>(x, w, y);

    const Matrix<double> expected = oracle::linear(converted<double, T>(x.view()), converted<double, T>(w.view()));
    const double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
    for (Index i = 0; i < shape.m; ++i) {
      for (Index j = 0; j < shape.n; ++j) {
        double absolute = 0;
        for (Index k = 0; k < shape.k; ++k)
          absolute += std::abs(static_cast<double>(x(i, k)) * static_cast<double>(w(j, k)));
        ASSERT_NEAR(expected(i, j), static_cast<double>(y(i, j)), static_cast<double>(shape.k) * u * absolute);
      }
    }
  }
}

TYPED_TEST(Linear, AcceptsStridedOperandsAndWritesNothingElse) {
  using T = TypeParam;
  const Matrix<T> x = random_matrix<T>(9, 90, 2, 3), w = random_matrix<T>(21, 100, 1, 4);
  Matrix<T> packed(9, 21), wide(9, 30);
  for (T& value : wide.span()) value = T{7};
  Matrix<T> x_copy(9, 70), w_copy(21, 70);
  for (Index i = 0; i < 9; ++i) std::copy_n(&x(i, 5), 70, x_copy.row(i).data());
  for (Index i = 0; i < 21; ++i) std::copy_n(&w(i, 11), 70, w_copy.row(i).data());

  linear<T>(x_copy, w_copy, packed);
  linear<T>(x.view().col_range(5, 70), w.view().col_range(11, 70), wide.view().col_range(4, 21));

  EXPECT_TRUE(oracle::same_bits<T>(packed, wide.view().col_range(4, 21)));
  for (Index i = 0; i < 9; ++i) {
    for (const Index j : {0, 3, 25, 29}) EXPECT_EQ(wide(i, j), T{7});
  }
}

TYPED_TEST(Linear, AnElementDependsOnItsTwoRowsAlone) {
  using T = TypeParam;
  for (const Index k : {5, 64, 300, 1030, 2500}) {
    const Index m = 150, n = 150;
    const Matrix<T> x = random_matrix<T>(m, k, 2, 5), w = random_matrix<T>(n, k, 1, 6);
    Matrix<T> whole(m, n);
    linear<T>(x, w, whole);

    for (const Index rows : {1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 33, 64, 130}) {
      for (const Index cols : {1, 3, 4, 6, 17, 65, 129}) {
        const Index row = (rows * 7 + cols) % (m - rows), col = (cols * 5 + rows) % (n - cols);
        Matrix<T> part(rows, cols);
        linear<T>(x.view().row_range(row, rows), w.view().row_range(col, cols), part);
        ASSERT_TRUE(oracle::same_bits<T>(part, whole.view().row_range(row, rows).col_range(col, cols)))
            << rows << " x " << cols << " of k " << k;
      }
    }
  }
}

TYPED_TEST(Linear, GivesTheSameBitsWhetherACacheHoldsTheWeightsOrNone) {
  using T = TypeParam;
  constexpr Index kRows = 17, kOutputs = 1031, kDepth = 2053, kFew = 21;
  ASSERT_EQ(gemm::where_lie(kOutputs * kDepth * Index{sizeof(T)}), gemm::Weights::in_memory);
  ASSERT_EQ(gemm::where_lie(kFew * kDepth * Index{sizeof(T)}), gemm::Weights::cached);
  const Matrix<T> x = random_matrix<T>(kRows, kDepth, 2, 1), w = random_matrix<T>(kOutputs, kDepth, 2, 2);
  Matrix<T> y(kRows, kOutputs), part(kRows, kFew);

  linear<T>(x, w, y);

  for (const Index begin : {Index{0}, Index{500}, kOutputs - kFew}) {
    linear<T>(x, w.view().row_range(begin, kFew), part);
    ASSERT_TRUE(oracle::same_bits<T>(part, y.view().col_range(begin, kFew))) << begin;
  }
}

TYPED_TEST(Linear, AcceptsEmptyOperands) {
  using T = TypeParam;
  Matrix<T> y = random_matrix<T>(3, 4, 1, 7);
  Matrix<T> none(0, 4), x(0, 5), w = random_matrix<T>(4, 5, 1, 8);
  linear<T>(x, w, none);
  Matrix<T> no_columns(3, 0);
  linear<T>(random_matrix<T>(3, 5, 1, 9), Matrix<T>(0, 5), no_columns);

  linear<T>(Matrix<T>(3, 0), Matrix<T>(4, 0), y);

  for (const T value : y.span()) EXPECT_EQ(value, T{0});
}

TYPED_TEST(Linear, ThrowsOnShapesThatDoNotFit) {
  using T = TypeParam;
  Matrix<T> y(3, 4);
  EXPECT_THROW(linear<T>(Matrix<T>(3, 5), Matrix<T>(4, 6), y), ShapeError);
  EXPECT_THROW(linear<T>(Matrix<T>(2, 5), Matrix<T>(4, 5), y), ShapeError);
  EXPECT_THROW(linear<T>(Matrix<T>(3, 5), Matrix<T>(5, 5), y), ShapeError);
}

TEST(LinearCost, CountsTwoFlopsAProductAndEachOperandOnce) {
  EXPECT_EQ(linear_cost(3, 5, 7, 2), (Cost{210, 2 * (21 + 35 + 15)}));
}

}  // namespace
}  // namespace shardproof::ops
