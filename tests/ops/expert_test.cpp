#include "ops/expert.h"

#include "ops/linear.h"
#include "ops/shape.h"
#include "ops/swiglu.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

TEST(Swiglu, EqualsTheOracleInExactOverTheWholeRangeOfGates) {
  const Index count = 60 * 1024 + 5;
  Matrix<double> gate(1, count), up = random_matrix<double>(1, count, 8, 1), out(1, count);
  for (Index i = 0; i < count; ++i) gate(0, i) = static_cast<double>(i - count / 2) * kActivationStep;

  swiglu<double>(gate, up, Format::exact, out);

  for (Index i = 0; i < count; ++i) ASSERT_EQ(out(0, i), oracle::swiglu(gate(0, i), up(0, i), true)) << gate(0, i);
}

TEST(Swiglu, ErrsByRoundingInFloatAndIsFiniteFarOut) {
  const Index count = 1001;
  Matrix<float> gate(1, count), up(1, count), out(1, count);
  for (Index i = 0; i < count; ++i) gate(0, i) = static_cast<float>(i - 500), up(0, i) = 1;

  swiglu<float>(gate, up, Format::fp32, out);

  for (Index i = 0; i < count; ++i) {
    const double expected = oracle::swiglu(static_cast<double>(gate(0, i)), 1, false);
    ASSERT_NEAR(static_cast<double>(out(0, i)), expected, 4 * 0x1p-24 * std::abs(expected) + 1e-30) << gate(0, i);
  }
}

TEST(Swiglu, RunsInPlaceOnStridedRowsOfEveryLength) {
  for (Index cols = 0; cols < 40; ++cols) {
    const Matrix<float> gate = random_matrix<float>(3, 45, 4, 2), up = random_matrix<float>(3, 45, 4, 3);
    Matrix<float> inside = gate.copy(), apart(3, cols);
    swiglu<float>(gate.view().col_range(2, cols), up.view().col_range(1, cols), Format::bf16, apart);

    swiglu<float>(inside.view().col_range(2, cols), up.view().col_range(1, cols), Format::bf16,
                  inside.view().col_range(2, cols));

    EXPECT_TRUE(oracle::same_bits<float>(apart, inside.view().col_range(2, cols)));
    EXPECT_EQ(inside(1, 1), gate(1, 1));
    EXPECT_EQ(inside(1, cols + 2), gate(1, cols + 2));
  }
}

TEST(Expert, WritesItsStepsAsItTookThemWhereTheyAreWanted) {
  const Index tokens = 101, hidden = 33, width = 150;  // more rows than are packed at once, more than one column block
  const Matrix<float> x = random_matrix<float>(tokens, hidden, 2, 1), gate = random_matrix<float>(width, hidden, 1, 2),
                      up = random_matrix<float>(width, hidden, 1, 3), down = random_matrix<float>(hidden, width, 1, 4);
  Matrix<float> y(tokens, hidden), without(tokens, hidden), g(tokens, width), u(tokens, width), h(tokens, width);

  expert<float>(x, gate, up, down, Format::bf16, y, {g, u, h});

  expert<float>(x, gate, up, down, Format::bf16, without);
  Matrix<float> linear_g(tokens, width), linear_u(tokens, width), swiglu_h(tokens, width);
  linear<float>(x, gate, linear_g);
  linear<float>(x, up, linear_u);
  round_to(linear_g.span(), Format::bf16);
  round_to(linear_u.span(), Format::bf16);
  swiglu<float>(linear_g, linear_u, Format::bf16, swiglu_h);
  EXPECT_TRUE(oracle::same_bits<float>(y, without));
  EXPECT_TRUE(oracle::same_bits<float>(g, linear_g));
  EXPECT_TRUE(oracle::same_bits<float>(u, linear_u));
  EXPECT_TRUE(oracle::same_bits<float>(h, swiglu_h));
  Matrix<float> short_step(tokens - 1, width);
  EXPECT_THROW(expert<float>(x, gate, up, down, Format::bf16, y, {short_step, u, h}), ShapeError);
}

TEST(Expert, EqualsTheOracleInExact) {
  for (const Index tokens : {1, 2, 5, 16, 40}) {
    const Index hidden = 48, width = 37;
    const Matrix<double> x = random_matrix<double>(tokens, hidden, 2, 1),
                         gate = random_matrix<double>(width, hidden, 1, 2),
                         up = random_matrix<double>(width, hidden, 1, 3),
                         down = random_matrix<double>(hidden, width, 1, 4);
    Matrix<double> y(tokens, hidden);

    expert<double>(x, gate, up, down, Format::exact, y);

    Matrix<double> g = oracle::linear(x, gate), u = oracle::linear(x, up);
    for (Index i = 0; i < g.size(); ++i) {
      g.data()[i] = oracle::swiglu(oracle::exact_stored(g.data()[i]), oracle::exact_stored(u.data()[i]), true);
    }
    oracle::expect_equal<double, double>(oracle::linear(g, down), y);
  }
}

TEST(Expert, ErrsByRoundingInEveryOtherFormat) {
  const Index tokens = 20, hidden = 200, width = 150;
  const Matrix<float> x = random_matrix<float>(tokens, hidden, 1, 5),
                      gate = random_matrix<float>(width, hidden, 0.125, 6),
                      up = random_matrix<float>(width, hidden, 0.125, 7),
                      down = random_matrix<float>(hidden, width, 0.125, 8);
  const auto wide = [](const Matrix<float>& m) { return converted<double, float>(m.view()); };
  Matrix<double> g = oracle::linear(wide(x), wide(gate)), u = oracle::linear(wide(x), wide(up));
  for (Index i = 0; i < g.size(); ++i) g.data()[i] = oracle::swiglu(g.data()[i], u.data()[i], false);
  const Matrix<double> expected = oracle::linear(g, wide(down));
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
    Matrix<float> y(tokens, hidden);
    expert<float>(x, gate, up, down, format, y);
    oracle::expect_near<float>(expected, y, 8 * unit_roundoff(format) + 1e-6);
  }
}

TEST(Expert, ATokenDependsOnItselfAlone) {
  const Index hidden = 130, width = 70;
  const Matrix<float> x = random_matrix<float>(90, hidden, 1, 9), gate = random_matrix<float>(width, hidden, 1, 10),
                      up = random_matrix<float>(width, hidden, 1, 11),
                      down = random_matrix<float>(hidden, width, 1, 12);
  Matrix<float> all(90, hidden);
  expert<float>(x, gate, up, down, Format::bf16, all);
  for (const Index count : {1, 3, 8, 33}) {
    Matrix<float> some(count, hidden);
    expert<float>(x.view().row_range(40, count), gate, up, down, Format::bf16, some);
    EXPECT_TRUE(oracle::same_bits<float>(some, all.view().row_range(40, count)));
  }
}

TEST(Expert, EqualsItsStepsOneAfterAnotherBitForBit) {
  const Index tokens = 110, hidden = 60, width = 290;
  const Matrix<float> x = random_matrix<float>(tokens, hidden, 1, 13),
                      gate = random_matrix<float>(width, hidden, 1, 14),
                      up = random_matrix<float>(width, hidden, 1, 15),
                      down = random_matrix<float>(hidden, width, 1, 16);
  Matrix<float> y(tokens, hidden), g(tokens, width), u(tokens, width), steps(tokens, hidden);

  expert<float>(x, gate, up, down, Format::bf16, y);

  linear<float>(x, gate, g);
  linear<float>(x, up, u);
  round_to(g.span(), Format::bf16);
  round_to(u.span(), Format::bf16);
  swiglu<float>(g, u, Format::bf16, g);
  linear<float>(g, down, steps);
  EXPECT_TRUE(oracle::same_bits<float>(steps, y));
}

TEST(Expert, NoTokensCostNothingAndWrongShapesThrow) {
  Matrix<float> none(0, 4), weights(6, 4), down(4, 6), x(2, 4);
  expert<float>(none, weights, weights, down, Format::fp32, none);

  EXPECT_EQ(expert_cost(0, 4, 6, 2), Cost{});
  EXPECT_EQ(expert_cost(3, 4, 6, 2).flops, 3 * 2 * 3 * 4 * 6 + 5 * 3 * 6);
  EXPECT_THROW(expert<float>(x, weights, weights, weights, Format::fp32, x), ShapeError);
}

}  // namespace
}  // namespace shardproof::ops
