#include "ops/attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

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

/// Keys and values of the case's sequences in blocks that are out of order, and the table of each.
template <class T>
struct Paged {
  Paged(const Inputs<T>& in, const Case& c, Index block) : block_size(block) {
    Index blocks = 0;
    for (std::size_t s = 1; s < c.offsets.size(); ++s) blocks += (c.offsets[s] - c.offsets[s - 1] + block - 1) / block;
    k = Matrix<T>(blocks * block, in.k.cols());
    v = Matrix<T>(blocks * block, in.v.cols());
    for (T& value : k.span()) value = std::numeric_limits<T>::quiet_NaN();
    for (T& value : v.span()) value = std::numeric_limits<T>::quiet_NaN();
    Index next = blocks;
    for (std::size_t s = 1; s < c.offsets.size(); ++s) {
      tables.emplace_back();
      for (Index token = 0; token < c.offsets[s] - c.offsets[s - 1]; ++token) {
        if (token % block == 0) tables.back().push_back(static_cast<std::int32_t>(--next));
        const Index row = next * block + token % block, from = c.offsets[s - 1] + token;
        std::ranges::copy(in.k.row(from), k.row(row).begin());
        std::ranges::copy(in.v.row(from), v.row(row).begin());
      }
    }
  }
  Index block_size;
  Matrix<T> k, v;
  std::vector<std::vector<std::int32_t>> tables;
};

/// Every sequence cut in two: out of blocks, the second part with the first as its past.
template <class T>
Matrix<T> in_chunks(const Inputs<T>& in, const Case& c, Index block, Index window, Format format) {
  const Paged<T> paged(in, c, block);
  Matrix<T> out(in.out.rows(), in.out.cols());
  for (const bool second : {false, true}) {
    std::vector<AttentionSpan> spans;
    std::vector<Index> rows;
    for (std::size_t s = 1; s < c.offsets.size(); ++s) {
      const Index length = c.offsets[s] - c.offsets[s - 1], cut = length / 3;
      const Index begin = second ? cut : 0, end = second ? length : cut;
      spans.push_back({.rows = end - begin, .past = begin, .blocks = paged.tables[s - 1]});
      for (Index t = begin; t < end; ++t) rows.push_back(c.offsets[s - 1] + t);
    }
    Matrix<T> q(static_cast<Index>(rows.size()), in.q.cols()), part(q.rows(), out.cols());
    for (Index i = 0; i < q.rows(); ++i) {
      std::ranges::copy(in.q.row(rows[static_cast<std::size_t>(i)]), q.row(i).begin());
    }
    attention<T>(q, paged.k, paged.v, spans, block, {.head_dim = c.head_dim, .window = window}, format, part);
    for (Index i = 0; i < q.rows(); ++i) {
      std::ranges::copy(std::as_const(part).row(i), out.row(rows[static_cast<std::size_t>(i)]).begin());
    }
  }
  return out;
}

// A token's output is the same bits whether its sequence comes at once or in parts, in rows or in blocks.
TEST(Attention, OfChunksOverBlocksIsThatOfWholeSequences) {
  for (const Case& c : kCases) {
    for (const Index block : {1, 3, 16}) {
      for (const Index window : {0, 5}) {
        Inputs<double> doubles(c);
        attention<double>(doubles.q, doubles.k, doubles.v, c.offsets, {.head_dim = c.head_dim, .window = window},
                          Format::exact, doubles.out);
        EXPECT_TRUE(std::ranges::equal(in_chunks(doubles, c, block, window, Format::exact).span(), doubles.out.span()));
        Inputs<float> floats(c);
        for (const Format format : {Format::fp32, Format::bf16}) {
          attention<float>(floats.q, floats.k, floats.v, c.offsets, {.head_dim = c.head_dim, .window = window}, format,
                           floats.out);
          EXPECT_TRUE(std::ranges::equal(in_chunks(floats, c, block, window, format).span(), floats.out.span()));
        }
      }
    }
  }
}

// One token against all before it goes another way than a whole sequence: several heads of keys at once.
TEST(Attention, OfOneTokenHasTheBitsOfItsRowInTheWholeSequence) {
  struct Shape {
    Index kv_heads, group, head_dim, value_dim, tokens, window;
  };
  for (const Shape& s : {Shape{2, 4, 16, 16, 700, 0}, Shape{3, 1, 12, 20, 300, 0}, Shape{1, 50, 24, 9, 261, 0},
                         Shape{2, 7, 17, 33, 513, 300}, Shape{2, 3, 8, 8, 40, 5}, Shape{1, 2, 5, 3, 1, 0}}) {
    const Index heads = s.kv_heads * s.group;
    const auto q = random_matrix<float>(s.tokens, heads * s.head_dim, 2, 1),
               k = random_matrix<float>(s.tokens, s.kv_heads * s.head_dim, 2, 2),
               v = random_matrix<float>(s.tokens, s.kv_heads * s.value_dim, 2, 3),
               sinks = random_matrix<float>(1, heads, 2, 4);
    const AttentionOptions<float> options{
        .head_dim = s.head_dim, .value_dim = s.value_dim, .window = s.window, .sinks = sinks.span()};
    const std::vector<std::int64_t> offsets{0, s.tokens};
    Matrix<float> whole(s.tokens, heads * s.value_dim), one(1, whole.cols());
    attention<float>(q, k, v, offsets, options, Format::fp32, whole);
    const std::vector<AttentionSpan> spans{{.rows = 1, .past = s.tokens - 1}};

    attention<float>(q.view().row_range(s.tokens - 1, 1), k, v, spans, 0, options, Format::fp32, one);

    EXPECT_TRUE(std::ranges::equal(std::as_const(one).row(0), std::as_const(whole).row(s.tokens - 1)))
        << s.kv_heads << " x " << s.group << " heads of " << s.head_dim << " and " << s.value_dim;
  }
}

TEST(Attention, RefusesSpansThatReachOutsideTheKeys) {
  const Case c{4, 1, 1, {0, 6}};
  Inputs<float> in(c);
  const std::int32_t blocks[] = {0, 3};
  const auto run = [&](AttentionSpan span, Index block_size) {
    attention<float>(in.q, in.k, in.v, {&span, 1}, block_size, {.head_dim = 4}, Format::fp32, in.out);
  };

  EXPECT_THROW(run({.rows = 6, .past = 1}, 0), ShapeError);
  EXPECT_THROW(run({.rows = 6, .first_key = -1}, 0), ShapeError);
  EXPECT_THROW(run({.rows = 5}, 0), ShapeError);
  EXPECT_THROW(run({.rows = 6, .past = -1}, 0), ShapeError);
  EXPECT_THROW(run({.rows = 6, .blocks = blocks}, 2), ShapeError);
  EXPECT_THROW(run({.rows = 6, .blocks = blocks}, 3), ShapeError);
}

}  // namespace
}  // namespace shardproof::ops
