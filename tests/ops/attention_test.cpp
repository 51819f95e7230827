#include "ops/attention.h"

#include <limits>

#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

struct Case {
  Index head_dim, heads, kv_heads;
  std::vector<std::int64_t> offsets;
};

const Case kCases[] = {
    {4, 1, 1, {0, 1}},        {8, 2, 1, {0, 3, 3, 8}}, {32, 4, 2, {0, 0, 17, 18, 50, 50}}, {6, 3, 3, {0, 40}},
    {64, 2, 2, {0, 33, 100}}, {128, 3, 1, {0, 5, 74}}, {20, 2, 1, {0, 130, 131}},          {64, 1, 1, {0, 300}},
};

template <class T>
struct Inputs {
  explicit Inputs(const Case& c, double range = 2)
      : q(random_matrix<T>(c.offsets.back(), c.heads * c.head_dim, range, 1)),
        k(random_matrix<T>(c.offsets.back(), c.kv_heads * c.head_dim, range, 2)),
        v(random_matrix<T>(c.offsets.back(), c.kv_heads * c.head_dim, range, 3)),
        out(c.offsets.back(), c.heads * c.head_dim) {}
  Matrix<double> expected(const Case& c, bool exact) const {
    return oracle::attention(converted<double, T>(q.view()), converted<double, T>(k.view()),
                             converted<double, T>(v.view()), c.offsets, c.head_dim, exact);
  }
  Matrix<T> q, k, v, out;
};

TEST(Attention, EqualsTheOracleInExact) {
  for (const Case& c : kCases) {
    Inputs<double> in(c);
    attention<double>(in.q, in.k, in.v, c.offsets, c.head_dim, Format::exact, in.out);
    oracle::expect_equal<double, double>(in.expected(c, true), in.out);
  }
}

TEST(Attention, ErrsByRoundingInEveryOtherFormat) {
  for (const Case& c : kCases) {
    Inputs<double> doubles(c);
    attention<double>(doubles.q, doubles.k, doubles.v, c.offsets, c.head_dim, Format::fp64, doubles.out);
    oracle::expect_near<double>(doubles.expected(c, false), doubles.out, 1e-13);

    Inputs<float> floats(c);
    for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
      attention<float>(floats.q, floats.k, floats.v, c.offsets, c.head_dim, format, floats.out);
      oracle::expect_near<float>(floats.expected(c, false), floats.out, unit_roundoff(format) + 1e-5);
    }
  }
}

TEST(Attention, SurvivesScoresThatSpanHundreds) {
  const Case c{64, 1, 1, {0, 150}};
  Inputs<float> in(c, 16);
  attention<float>(in.q, in.k, in.v, c.offsets, c.head_dim, Format::fp32, in.out);
  oracle::expect_near<float>(in.expected(c, false), in.out, 1e-3);
}

TEST(Attention, ASequenceAndAHeadDependOnThemselvesAlone) {
  const Case c{32, 4, 2, {0, 9, 80, 81, 150}};
  Inputs<float> in(c);
  attention<float>(in.q, in.k, in.v, c.offsets, c.head_dim, Format::fp32, in.out);

  for (std::size_t s = 1; s < c.offsets.size(); ++s) {
    const Index begin = c.offsets[s - 1], length = c.offsets[s] - begin;
    const std::vector<std::int64_t> alone{0, length};
    Matrix<float> part(length, 64);
    // Query heads 2 and 3 share key head 1.
    attention<float>(in.q.view().row_range(begin, length).col_range(64, 64),
                     in.k.view().row_range(begin, length).col_range(32, 32),
                     in.v.view().row_range(begin, length).col_range(32, 32), alone, 32, Format::fp32, part);
    EXPECT_TRUE(oracle::same_bits<float>(part, in.out.view().row_range(begin, length).col_range(64, 64)));
  }
}

TEST(Attention, TheFirstTokenSeesItsOwnValueOnly) {
  const Case c{16, 1, 1, {0, 4}};
  Inputs<float> in(c);
  attention<float>(in.q, in.k, in.v, c.offsets, c.head_dim, Format::fp32, in.out);
  EXPECT_TRUE(oracle::same_bits<float>(in.v.view().row_range(0, 1), in.out.view().row_range(0, 1)));
}

TEST(Attention, NothingOfALaterTokenLeaksBackwards) {
  const Case c{16, 1, 1, {0, 140}};
  Inputs<float> clean(c), dirty(c);
  for (Index t = 131; t < 140; ++t) {
    for (Index d = 0; d < 16; ++d) dirty.k(t, d) = dirty.v(t, d) = std::numeric_limits<float>::quiet_NaN();
  }

  attention<float>(clean.q, clean.k, clean.v, c.offsets, 16, Format::fp32, clean.out);
  attention<float>(dirty.q, dirty.k, dirty.v, c.offsets, 16, Format::fp32, dirty.out);

  EXPECT_TRUE(oracle::same_bits<float>(clean.out.view().row_range(0, 131), dirty.out.view().row_range(0, 131)));
  EXPECT_TRUE(std::isnan(dirty.out(131, 0)));
}

TEST(Attention, AcceptsNoTokensNoSequencesAndNoHeads) {
  Matrix<float> none(0, 8), narrow(3, 0), out(3, 0);
  const std::vector<std::int64_t> empty{0, 0, 0}, three{0, 3};
  attention<float>(none, none, none, empty, 4, Format::fp32, none);
  attention<float>(none, none, none, {}, 4, Format::fp32, none);
  attention<float>(narrow, narrow, narrow, three, 4, Format::fp32, out);
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  Matrix<float> x(3, 8), thin(3, 4), odd(3, 6), out(3, 8);
  const std::vector<std::int64_t> three{0, 3}, two{0, 2}, falling{0, 4, 3}, late{1, 3};
  EXPECT_THROW(attention<float>(x, x, x, two, 4, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, x, x, falling, 4, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, x, x, late, 4, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, x, x, three, 3, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, x, thin, three, 4, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, odd, odd, three, 2, Format::fp32, out), ShapeError);
  EXPECT_THROW(attention<float>(x, x, x, three, 0, Format::fp32, out), ShapeError);
}

TEST(AttentionCost, CountsTheCausalPairs) {
  const std::vector<std::int64_t> offsets{0, 3, 3, 7};
  EXPECT_EQ(causal_pairs(offsets), 6 + 10);
  EXPECT_EQ(attention_cost(offsets, 4, 2, 8, 2), (Cost{4.0 * 16 * 32, 2.0 * 2 * 7 * (32 + 16)}));
}

}  // namespace
}  // namespace shardproof::ops
