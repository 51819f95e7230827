#include <cmath>
#include <utility>

#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

TEST(RmsNorm, EqualsTheOracleInExactAtEveryWidth) {
  for (const Index width : {1, 2, 3, 7, 8, 16, 33, 64, 100, 512, 1000}) {
    const Matrix<double> x = random_matrix<double>(5, width, 4, 1), weight = random_matrix<double>(1, width, 2, 2);
    Matrix<double> y(5, width);

    rms_norm<double>(x, weight.span(), 1e-5, Format::exact, y);

    oracle::expect_equal<double, double>(oracle::rms_norm(x, weight.span(), 1e-5, true), y);
  }
}

TEST(RmsNorm, ErrsByRoundingInEveryOtherFormat) {
  const Matrix<float> x = random_matrix<float>(4, 300, 4, 3), weight = random_matrix<float>(1, 300, 2, 4);
  const Matrix<double> expected =
      oracle::rms_norm(converted<double, float>(x.view()), converted<double, float>(weight.view()).span(), 1e-5, false);
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
    Matrix<float> y(4, 300);
    rms_norm<float>(x, weight.span(), 1e-5, format, y);
    oracle::expect_near<float>(expected, y, unit_roundoff(format) + 16 * 0x1p-24);
  }
}

TEST(RmsNorm, RunsInPlaceAndOnStridedRows) {
  const Matrix<float> x = random_matrix<float>(3, 70, 4, 5), weight = random_matrix<float>(1, 50, 2, 6);
  Matrix<float> apart(3, 50), inside = x.copy();
  rms_norm<float>(x.view().col_range(9, 50), weight.span(), 1e-5, Format::bf16, apart);

  rms_norm<float>(inside.view().col_range(9, 50), weight.span(), 1e-5, Format::bf16, inside.view().col_range(9, 50));

  EXPECT_TRUE(oracle::same_bits<float>(apart, inside.view().col_range(9, 50)));
  EXPECT_EQ(inside(1, 8), x(1, 8));
  EXPECT_EQ(inside(1, 59), x(1, 59));
}

TEST(RmsNorm, EqualElementsGiveEqualResultsWhereverTheyStand) {
  Matrix<float> x(1, 77), weight(1, 77), y(1, 77);
  for (float& value : x.span()) value = 1.2345F;
  for (float& value : weight.span()) value = 0.777F;

  rms_norm<float>(x, weight.span(), 1e-5, Format::fp32, y);

  for (const float value : y.span()) EXPECT_EQ(value, y(0, 0));
}

TEST(RmsNorm, OfPartsIsThatOfTheWholeOnceTheSquaresAreAdded) {
  const Matrix<double> x = random_matrix<double>(5, 48, 4, 21), weight = random_matrix<double>(1, 48, 2, 22);
  Matrix<double> whole(5, 48), parts(5, 48), squares(5, 2), sum(5, 1);
  rms_norm<double>(x, weight.span(), 1e-5, Format::exact, whole);
  sum_squares<double>(x.view().col_range(0, 13), squares, 0);
  sum_squares<double>(x.view().col_range(13, 35), squares, 1);
  for (Index row = 0; row < 5; ++row) sum(row, 0) = squares(row, 0) + squares(row, 1);

  for (const auto& [begin, count] : {std::pair<Index, Index>{0, 13}, {13, 35}}) {
    rms_norm_part<double>(x.view().col_range(begin, count), sum, 0, 48, weight.view().col_range(begin, count).row(0),
                          1e-5, Format::exact, parts.view().col_range(begin, count));
  }

  EXPECT_TRUE(oracle::same_bits<double>(whole, parts));
}

TEST(LayerNorm, TakesTheMeanOffAndAddsTheBias) {
  const Matrix<float> x = random_matrix<float>(4, 37, 4, 23), weight = random_matrix<float>(1, 37, 2, 24),
                      bias = random_matrix<float>(1, 37, 2, 25);
  Matrix<float> y(4, 37);

  layer_norm<float>(x, weight.span(), bias.span(), 1e-5, Format::fp32, y);

  for (Index row = 0; row < 4; ++row) {
    double mean = 0, variance = 0;
    for (Index i = 0; i < 37; ++i) mean += double{x(row, i)} / 37;
    for (Index i = 0; i < 37; ++i) variance += (x(row, i) - mean) * (x(row, i) - mean) / 37;
    for (Index i = 0; i < 37; ++i) {
      EXPECT_NEAR(y(row, i), (x(row, i) - mean) / std::sqrt(variance + 1e-5) * weight(0, i) + bias(0, i), 1e-5);
    }
  }
}

TEST(LayerNorm, StoresItsMeanInExact) {
  Matrix<double> x(1, 3), weight(1, 3), bias(1, 3), y(1, 3);
  for (Index i = 0; i < 3; ++i) {
    x(0, i) = i == 0 ? 1 : 0;
    weight(0, i) = 1;
    bias(0, i) = 0;
  }

  layer_norm<double>(x, weight.span(), bias.span(), 0, Format::exact, y);

  // 1/3 on the grid is 341/1024.
  const double mean = 341.0 / 1024, variance = ((1 - mean) * (1 - mean) + 2 * mean * mean) / 3;
  EXPECT_EQ(y(0, 0), stored((1 - mean) * (1 / std::sqrt(variance)), Format::exact));
  EXPECT_EQ(y(0, 1), stored(-mean * (1 / std::sqrt(variance)), Format::exact));
}

TEST(RmsNorm, AcceptsNoRowsAndRefusesAWrongWeight) {
  Matrix<float> none(0, 4);
  const Matrix<float> weight = random_matrix<float>(1, 4, 2, 7);
  rms_norm<float>(none, weight.span(), 1e-5, Format::fp32, none);

  EXPECT_THROW(rms_norm<float>(none, weight.span().first(3), 1e-5, Format::fp32, none), ShapeError);
}

const std::vector<std::int64_t> kPositions{0, 1, 2, 7, 100, 10239, 3, 0};

TEST(Rope, EqualsTheOracleInExact) {
  for (const Index head_dim : {2, 6, 32, 64, 128}) {
    const Matrix<double> x = random_matrix<double>(8, 3 * head_dim, 4, 8);
    Matrix<double> y = x.copy();

    rope<double>(y, kPositions, head_dim, 1e6, Format::exact);

    oracle::expect_equal<double, double>(oracle::rope(x, kPositions, head_dim, 1e6, true), y);
  }
}

TEST(Rope, ErrsByRoundingInEveryOtherFormat) {
  const Matrix<float> x = random_matrix<float>(8, 192, 4, 9);
  const Matrix<double> expected = oracle::rope(converted<double, float>(x.view()), kPositions, 64, 1e4, false);
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
    Matrix<float> y = x.copy();
    rope<float>(y, kPositions, 64, 1e4, format);
    oracle::expect_near<float>(expected, y, unit_roundoff(format) + 4 * 0x1p-24);
  }
}

TEST(Rope, PositionZeroIsTheIdentityAndARowDependsOnItselfAlone) {
  const Matrix<float> x = random_matrix<float>(8, 128, 4, 10);
  Matrix<float> all = x.copy(), one(1, 128), slice(8, 32);
  std::copy_n(x.row(4).data(), 128, one.row(0).data());
  for (Index t = 0; t < 8; ++t) std::copy_n(&x(t, 96), 32, slice.row(t).data());

  rope<float>(all, kPositions, 32, 1e4, Format::fp32);
  rope<float>(one, std::span(kPositions).subspan(4, 1), 32, 1e4, Format::fp32);
  rope<float>(slice, kPositions, 32, 1e4, Format::fp32);

  EXPECT_TRUE(oracle::same_bits<float>(x.view().row_range(0, 1), all.view().row_range(0, 1)));
  EXPECT_TRUE(oracle::same_bits<float>(one, all.view().row_range(4, 1)));
  EXPECT_TRUE(oracle::same_bits<float>(slice, all.view().col_range(96, 32)));
}

TEST(Rope, ATableTurnsByTheSameBits) {
  for (const Format format : {Format::fp32, Format::bf16, Format::exact}) {
    const RopeTable<double> table(10240, 32, 1e4, format);
    Matrix<double> by_table = random_matrix<double>(8, 64, 4, 11), anew = by_table.copy();

    rope<double>(by_table, kPositions, table);
    rope<double>(anew, kPositions, 32, 1e4, format);

    EXPECT_TRUE(oracle::same_bits<double>(anew, by_table));
  }
}

TEST(Rope, RefusesAPositionBeyondTheTable) {
  const RopeTable<float> table(3, 4, 1e4, Format::fp32);
  Matrix<float> x = random_matrix<float>(1, 8, 4, 12);
  EXPECT_THROW(rope<float>(x, std::vector<std::int64_t>{3}, table), ShapeError);
  EXPECT_THROW(rope<float>(x, std::vector<std::int64_t>{-1}, table), ShapeError);
}

TEST(Rope, AcceptsNoTokensAndRefusesOddHeads) {
  Matrix<float> none(0, 8), x(1, 9);
  rope<float>(none, {}, 4, 1e4, Format::fp32);

  EXPECT_THROW(rope<float>(none, {}, 3, 1e4, Format::fp32), ShapeError);
  EXPECT_THROW(rope<float>(x, std::span(kPositions).first(1), 4, 1e4, Format::fp32), ShapeError);
  EXPECT_THROW(rope<float>(none, kPositions, 4, 1e4, Format::fp32), ShapeError);
}

}  // namespace
}  // namespace shardproof::ops
