#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/permute.h"
#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::random_matrix;

TEST(GatherRows, CopiesEachNamedRow) {
  const Matrix<float> x = random_matrix<float>(5, 9, 1, 1);
  const std::vector<std::int64_t> rows{4, 0, 0, 2};
  Matrix<float> out(4, 9);

  gather_rows<float>(x, rows, out);

  for (Index i = 0; i < 4; ++i) {
    EXPECT_TRUE(
        oracle::same_bits<float>(x.view().row_range(rows[static_cast<std::size_t>(i)], 1), out.view().row_range(i, 1)));
  }
}

TEST(GatherRows, AcceptsNoRowsAndRefusesOnesOutside) {
  const Matrix<float> x = random_matrix<float>(5, 9, 1, 2);
  Matrix<float> out(1, 9), none(0, 9);
  gather_rows<float>(x, {}, none);
  gather_rows<float>(Matrix<float>(0, 9), {}, none);

  EXPECT_THROW(gather_rows<float>(x, std::vector<std::int64_t>{5}, out), ShapeError);
  EXPECT_THROW(gather_rows<float>(x, std::vector<std::int64_t>{-1}, out), ShapeError);
}

TEST(Combine, SumsInSlotOrderAndStoresOnce) {
  for (Index cols = 1; cols < 40; ++cols) {
    const Matrix<float> y = random_matrix<float>(12, cols, 1, 3), weights = random_matrix<float>(4, 3, 1, 4);
    Matrix<std::int64_t> positions(4, 3);
    for (Index i = 0; i < 12; ++i) positions.data()[i] = (i * 5) % 12;
    Matrix<float> out(4, cols);

    combine<float>(y, positions, weights, Format::bf16, out);

    for (Index t = 0; t < 4; ++t) {
      for (Index j = 0; j < cols; ++j) {
        float sum = 0;
        for (Index s = 0; s < 3; ++s) sum += weights(t, s) * y(positions(t, s), j);
        ASSERT_EQ(out(t, j), stored(sum, Format::bf16));
      }
    }
  }
}

TEST(Combine, AcceptsNoTokensAndNoSlotsAndRefusesPositionsOutside) {
  Matrix<float> y(2, 5), none(0, 5), no_weights(0, 2), out = random_matrix<float>(3, 5, 1, 5), weights(3, 1);
  combine<float>(y, Matrix<std::int64_t>(0, 2), no_weights, Format::fp32, none);
  combine<float>(y, Matrix<std::int64_t>(3, 0), Matrix<float>(3, 0), Format::fp32, out);
  for (const float value : out.span()) EXPECT_EQ(value, 0.0F);

  Matrix<std::int64_t> positions = Matrix<std::int64_t>::zeros(3, 1);
  positions(2, 0) = 2;
  EXPECT_THROW(combine<float>(y, positions, weights, Format::fp32, out), ShapeError);
}

TEST(Embed, LooksUpTheSliceAndLeavesZerosElsewhere) {
  const Matrix<float> table = random_matrix<float>(10, 6, 1, 6);
  const std::vector<std::int32_t> ids{0, 3, 4, 9, 3, 7, -1, 1000};
  Matrix<float> sum = Matrix<float>::zeros(8, 6), part(8, 6);
  for (const Index begin : {0, 4, 7}) {
    const Index end = begin == 0 ? 4 : begin == 4 ? 7 : 10;

    embed<float>(ids, table.view().row_range(begin, end - begin), begin, part);

    add<float>(sum, part, Format::fp32, sum);
  }

  for (Index t = 0; t < 8; ++t) {
    const Index id = ids[static_cast<std::size_t>(t)];
    for (Index j = 0; j < 6; ++j) EXPECT_EQ(sum(t, j), id >= 0 && id < 10 ? table(id, j) : 0.0F);
  }
}

TEST(Embed, TakesWideIdsNoIdsAndAnEmptySlice) {
  const Matrix<double> table = random_matrix<double>(3, 2, 1, 7);
  Matrix<double> out(2, 2), none(0, 2);
  embed<double>(std::vector<std::int64_t>{2, 0}, table, 0, out);
  EXPECT_EQ(out(0, 1), table(2, 1));

  embed<double>(std::vector<std::int64_t>{2, 0}, Matrix<double>(0, 2), 0, out);
  EXPECT_EQ(out(0, 1), 0.0);
  embed<double>(std::vector<std::int64_t>{}, table, 0, none);
}

TEST(Add, StoresTheSumInEveryFormatAndInPlace) {
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
    const Matrix<float> x = random_matrix<float>(3, 37, 100, 8), y = random_matrix<float>(3, 37, 1, 9);
    Matrix<float> out = x.copy();

    add<float>(out, y, format, out);

    for (Index i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], stored(x.data()[i] + y.data()[i], format));
  }
  Matrix<float> none(0, 3), other(1, 3);
  add<float>(none, none, Format::fp32, none);
  EXPECT_THROW(add<float>(none, other, Format::fp32, none), ShapeError);
}

}  // namespace
}  // namespace shardproof::ops
